"""A network without its class: the operations of `torch.export`, as plain JSON, and a module that runs them.

`torch.export.save` stores weights, constants and example inputs with `torch.save`, so `torch.export.load` unpickles them, and its graphs carry
formulas that are evaluated. Here the exported graph is written as data instead, and only operations of two known families are ever called:

    {"inputs": ["x"], "batch": [1, null], "tensors": {"p_conv_weight": "conv.weight"},
     "steps": [["conv2d", "aten.conv2d.default", [{"$": "x"}, {"$": "p_conv_weight"}, null, [1, 1], [1, 1]], {}], …], "output": {"$": "linear"}}

A step is (name, operation, arguments, keywords); ``{"$": name}`` is an earlier value. The graph is that of evaluation mode.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..structure.trace import main_output
from .artifact import ArtifactError

PYTHON = ("add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_", "getitem")
CONSTANTS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


class NotCapturable(ValueError):
    """The model's computation cannot be written down as a flat list of operations; the message says why."""


class _MainOutput(nn.Module):
    def __init__(self, model: nn.Module, keywords: tuple[str, ...]):
        super().__init__()
        self.model, self.keywords = model, keywords

    def forward(self, *inputs):
        if self.keywords:
            return main_output(self.model(**dict(zip(self.keywords, inputs, strict=True))))
        return main_output(self.model(*inputs))


def exported(model: nn.Module, example) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """The model's main output in evaluation mode as a program of `torch.export`, and the names of its inputs where they are keywords.

    The batch may be of any size where the model's code allows it. ``example``: a tensor, a tuple or a dict of tensors, batch first. NotCapturable.
    """
    keywords = tuple(example) if isinstance(example, Mapping) else ()
    inputs = tuple(example.values()) if keywords else example if isinstance(example, tuple) else (example,)
    whole = _MainOutput(copy.deepcopy(model).eval(), keywords)
    several = tuple(x.repeat_interleave(2, 0) for x in inputs) if len(inputs[0]) == 1 else inputs  # a batch of one would be taken for a constant
    try:
        return _export(whole, several, (tuple({0: torch.export.Dim.AUTO} for _ in inputs),)), keywords
    except NotCapturable:
        if several is inputs:
            raise
        return _export(whole, inputs, None), keywords  # the model's code asks for this very batch


def capture(model: nn.Module, example) -> tuple[dict, dict[str, Tensor]]:
    """(graph, the tensors that it reads beyond ``model.state_dict()``) of :func:`exported`. NotCapturable: data-dependent control flow, operations
    outside aten, …"""
    program, keywords = exported(model, example)
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise NotCapturable("it changes its buffers or inputs while it runs")
    values = dict(program.state_dict) | dict(program.constants)
    tensors = {spec.arg.name: spec.target.removeprefix("model.") for spec in signature.input_specs if spec.target is not None}
    saved = model.state_dict()
    extra = {spec.target.removeprefix("model."): values[spec.target] for spec in signature.input_specs
             if spec.target is not None and spec.target.removeprefix("model.") not in saved}
    steps, output = [], None
    for node in program.graph.nodes:
        if node.op == "call_function" and not ("assert" in node.name and not node.users):
            steps.append([node.name, _name(node.target), _encode(node.args), _encode(dict(node.kwargs))])
        elif node.op == "output":
            output = _encode(node.args[0][0] if len(node.args[0]) == 1 else node.args[0])
    return {"inputs": list(signature.user_inputs), "keywords": list(keywords), "tensors": tensors, "steps": steps, "output": output,
            "batch": _batch(program)}, extra


def _export(model: nn.Module, inputs: tuple, dynamic: tuple | None) -> torch.export.ExportedProgram:
    muted, logging.root.manager.disable = logging.root.manager.disable, logging.WARNING  # torch.export logs pages before it raises
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # … and prints the graph
            return torch.export.export(model, inputs, dynamic_shapes=dynamic)
    except Exception as error:  # torch.export raises dozens of kinds
        raise NotCapturable(f"torch.export cannot trace it: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
    finally:
        logging.root.manager.disable = muted


def _batch(program: torch.export.ExportedProgram) -> list[int | None]:
    """Smallest and largest batch for which the captured operations are the model's (None: no limit)."""
    size = next(n for n in program.graph.nodes if n.name == program.graph_signature.user_inputs[0]).meta["val"].shape[0]
    if not isinstance(size, torch.SymInt):
        return [int(size), int(size)]
    limits = program.range_constraints[size.node.expr]
    low, high = int(limits.lower), None if limits.upper > 2**31 else int(limits.upper)
    return [low if low > 2 else 1, high]  # torch.export never lets a symbol be 0 or 1


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    if getattr(operator, getattr(target, "__name__", ""), None) is target and target.__name__ in PYTHON:
        return f"operator.{target.__name__}"
    raise NotCapturable(f"the operation {target} is not a plain one")


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"$": value.name}
    if isinstance(value, Mapping):
        return {key: _encode(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, float) and value - value != 0:  # JSON knows no infinities
        return {"float": str(value)}
    for kind, cls in CONSTANTS.items():
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise NotCapturable(f"a constant of type {type(value).__name__} cannot be written down")


def _decode(value: Any, known: set[str], used: list[str]) -> Callable[[dict], Any]:
    """The encoded value as a function of the values computed so far; the names that it refers to are appended to ``used``."""
    if isinstance(value, list):
        parts = [_decode(v, known, used) for v in value]
        return lambda env: [part(env) for part in parts]
    if not isinstance(value, dict):
        return lambda env: value
    (kind, name), = value.items()
    if kind == "$":
        if name not in known:
            raise ValueError(f"{name!r} is used before it is computed")
        used.append(name)
        return lambda env: env[name]
    if kind in CONSTANTS:
        constant = getattr(torch, name)
        if not isinstance(constant, CONSTANTS[kind]):
            raise ValueError(f"{name!r} is no {kind}")
    elif kind == "device":
        constant = torch.device(name)
    elif kind == "float":
        constant = float(name)
    else:
        raise ValueError(f"unknown constant {kind!r}")
    return lambda env: constant


def _operation(name: str) -> Callable:
    family, _, rest = name.partition(".")
    if family == "operator" and rest in PYTHON:
        return getattr(operator, rest)
    packet, _, overload = rest.partition(".")
    if family != "aten" or not packet.isidentifier() or not overload.isidentifier():
        raise ValueError(f"the operation {name!r} is not allowed")
    try:
        found = getattr(getattr(torch.ops.aten, packet), overload)
    except AttributeError as error:
        raise ValueError(f"the operation {name!r} does not exist in torch {torch.__version__}") from error
    if not isinstance(found, torch._ops.OpOverload) or any(argument.name == "filename" for argument in found._schema.arguments):
        raise ValueError(f"the operation {name!r} is not allowed: it is not one on tensors alone")
    return found


class GraphNet(nn.Module):
    """Runs a captured graph. Its parameters are the model's own, with ``/`` for the dots in their names; they can be fine-tuned.

    Returns the model's main output (for Hugging Face models the logits). ArtifactError: the graph is malformed or asks for something else.
    """

    def __init__(self, graph: Mapping[str, Any], tensors: Mapping[str, Tensor]):
        super().__init__()
        try:
            self._build(graph, tensors)
        except ArtifactError:
            raise
        except Exception as error:  # the graph comes from a file: whatever is wrong with it, the file is at fault
            raise ArtifactError(f"malformed graph: {error}") from error

    def _build(self, graph: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.inputs, self.keywords = list(graph["inputs"]), list(graph["keywords"])
        low, high = graph["batch"]
        self.batch = int(low), None if high is None else int(high)
        self.sources: dict[str, str] = {}
        self.weights = nn.Module()
        for placeholder, name in graph["tensors"].items():
            self.sources[placeholder] = attribute = name.replace(".", "/")
            if not hasattr(self.weights, attribute):
                value = tensors[name]
                if value.is_floating_point() and "running_" not in name:
                    self.weights.register_parameter(attribute, nn.Parameter(value))
                else:
                    self.weights.register_buffer(attribute, value)
        known, last = {*self.inputs, *self.sources}, {}
        self.steps = []
        for i, (name, operation, args, kwargs) in enumerate(graph["steps"]):
            used: list[str] = []
            call = _operation(operation), _decode(args, known, used), {key: _decode(v, known, used) for key, v in kwargs.items()}
            known.add(name)
            last.update(dict.fromkeys([name, *used], i))
            self.steps.append((name, *call))
        used = []
        self.output = _decode(graph["output"], known, used)
        self.free: list[list[str]] = [[] for _ in self.steps]  # values that no later step reads
        for name in last.keys() - set(used):
            self.free[last[name]].append(name)

    def forward(self, *inputs: Tensor, **named: Tensor):
        inputs = (*inputs, *(named[key] for key in self.keywords[len(inputs):] if key in named))
        if len(inputs) != len(self.inputs):
            raise ValueError(f"inputs: {len(self.inputs)} tensors are needed ({', '.join(self.keywords or self.inputs)}), found {len(inputs)}")
        low, high = self.batch
        if not low <= len(inputs[0]) <= (high or len(inputs[0])):
            raise ValueError(f"inputs: the graph was captured for batches of {low} to {high or 'any number'}, found {len(inputs[0])}")
        env: dict[str, Any] = dict(zip(self.inputs, inputs, strict=True))
        env.update((placeholder, getattr(self.weights, attribute)) for placeholder, attribute in self.sources.items())
        for (name, call, args, kwargs), dead in zip(self.steps, self.free, strict=True):
            env[name] = call(*args(env), **{key: value(env) for key, value in kwargs.items()})
            for key in dead:
                del env[key]
        return self.output(env)
