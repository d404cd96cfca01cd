"""Content keys: a stored point is used again only while the code, data and settings that made it are unchanged.

The code key hashes the syntax trees, without docstrings, of a paper's module and of every `workbench` module that it imports, directly or through
others — papers, benches, contracts and the part of core that measures. What only words or draws (claims, pictures, parts, exercises and checks of
the `STUDY` with the functions that only they use; the explorer, reports and command line) does not enter, so that rewording a claim or redrawing a
picture measures nothing again. Knob values stand in each point's key, so that a longer grid measures only its new points.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path

from .study import Point, StudyError

WORDS = {"checks", "claims", "parts", "picture", "exercise", "knobs", "time_limit", "enter", "absent"}
ROOT = Path(__file__).resolve().parents[1]
MEASURING = {"workbench.core.study": ("measure", "call_with")}


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


def _measuring_part(tree: ast.Module, wanted: tuple[str, ...] = ()) -> None:
    """Keeps of a module the definitions ``wanted`` or, of a paper's, those that its `STUDY` (without words) reaches; a picture's code is not among them.

    What is no plain definition (imports, assignments into a table) stays, and so does whatever is decorated: a decorator may file it somewhere.
    """
    names = {id(node): {node.name} if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.decorator_list
             else {t.id for t in node.targets if isinstance(t, ast.Name)} if isinstance(node, ast.Assign) else set() for node in tree.body}
    if wanted:
        tree.body = [node for node in tree.body if names[id(node)] & set(wanted)]
        return
    kept = [node for node in tree.body if not names[id(node)] or "STUDY" in names[id(node)]]
    reached: set[str] = set()
    while kept:
        reached |= {part.id for node in kept for part in ast.walk(node) if isinstance(part, ast.Name)} | {n for node in kept for n in names[id(node)]}
        known = {id(node) for node in kept}
        more = [node for node in tree.body if id(node) not in known and names[id(node)] & reached]
        if not more:
            break
        kept += more
    known = {id(node) for node in kept}
    tree.body = [node for node in tree.body if id(node) in known]


@cache
def _parsed(module: str, paper: bool) -> tuple[str, tuple[str, ...]]:
    """The hash of a module's stripped tree (of a paper's, only what measures), and the workbench modules that it imports."""
    path = _path(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = _Strip().visit(ast.parse(path.read_text(encoding="utf8")))
    if paper or module in MEASURING:
        _measuring_part(tree, MEASURING.get(module, ()))
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    imports = tuple(dict.fromkeys(name for name in found if name.split(".")[0] == "workbench" and _path(name)))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


@cache
def code_key(module: str) -> str:
    """The code key of a paper's module, 16 hexadecimal digits."""
    if _path(module) is None:
        raise StudyError(f"no source of the module {module} below {ROOT.parent}: its code cannot be identified")
    seen, todo = {}, [module]
    while todo:
        name = todo.pop()
        if name in seen or (name.startswith("workbench.core") and name not in MEASURING):
            continue
        seen[name], imports = _parsed(name, name == module)
        todo += imports
    seen["workbench.core.study"] = _parsed("workbench.core.study", False)[0]
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()[:16]


def point_key(module: str, data_key: str, point: Point) -> str:
    """The key of one point, 20 hexadecimal digits."""
    knobs = [[name, float(value)] for name, value in point.knobs]  # 1 and 1.0 are the same value
    text = json.dumps([code_key(module), data_key, point.contender, knobs, point.replica, point.seed, point.tier])
    return hashlib.sha256(text.encode()).hexdigest()[:20]
