"""Content keys: a stored point is used again only while the code, data and settings that made it are unchanged.

The code key hashes the syntax trees, without docstrings, of a paper's module and of every `workbench` module that it imports, directly or through
others — papers, benches, contracts and the part of core that measures. What only words or draws (claims, pictures, parts, exercises and checks in
the `STUDY`, the explorer, reports and command line) does not enter, so that rewording a claim measures nothing again.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from functools import lru_cache
from pathlib import Path

from .study import Point

WORDS = {"checks", "claims", "parts", "picture", "exercise", "track"}
ROOT = Path(__file__).resolve().parents[1]
MEASURING = {"workbench.core.study"}


class _Strip(ast.NodeTransformer):
    """Removes docstrings, and the keywords of a `Study(...)` call that do not decide what is measured."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "Study":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in WORDS]
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) \
                and isinstance(body[0].value.value, str):
            node.body = body[1:] or [ast.Pass()]
        return super().generic_visit(node)


def _path(module: str) -> Path | None:
    base = ROOT.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


@lru_cache(maxsize=None)
def _parsed(module: str) -> tuple[str, tuple[str, ...]]:
    """The hash of a module's stripped tree, and the workbench modules that it imports."""
    path = _path(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf8"))
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    imports = tuple(dict.fromkeys(name for name in found if name.startswith("workbench") and _path(name)))
    return hashlib.sha256(ast.dump(_Strip().visit(tree)).encode()).hexdigest(), imports


@lru_cache(maxsize=None)
def code_key(module: str) -> str:
    """The code key of a paper's module, 16 hexadecimal digits."""
    seen, todo = {}, [module]
    while todo:
        name = todo.pop()
        if name in seen or (name.startswith("workbench.core") and name not in MEASURING):
            continue
        seen[name], imports = _parsed(name)
        todo += imports
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:16]


def point_key(module: str, data_key: str, point: Point) -> str:
    """The key of one point, 20 hexadecimal digits."""
    text = json.dumps([code_key(module), data_key, point.contender, point.knobs, point.replica, point.seed, point.tier])
    return hashlib.sha256(text.encode()).hexdigest()[:20]
