"""Networks on disk: how a file brings its network back, without the code that made it and without unpickling.

    class          a network of the workbench: its class and ``config()``
    transformers   a model of that library: class and configuration; layers shrink to the stored shapes
    graph          any other: the captured operations (:mod:`workbench.contracts.files.graph`)
    weights        what none of these restores: ``load(path, model=the network before compression)``

:func:`describe` takes the first form whose outputs on ``example`` equal the model's to the last bit.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..structure.trace import CONV, forward
from .artifact import Artifact, ArtifactError, read, save
from .graph import GraphNet, NotCapturable, capture

REMOTE = ("auto_map", "use_pretrained_backbone", "quantization_config", "trust_remote_code", "use_kernels")


def _parent(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _recount(module: nn.Module) -> None:
    """Set the attributes that count channels from the shapes of the weights."""
    weight = getattr(module, "weight", None)
    if isinstance(module, CONV):
        depthwise = module.groups == module.out_channels == module.in_channels > 1
        module.groups = weight.shape[0] if depthwise else module.groups
        outer, inner = weight.shape[0], weight.shape[1] * module.groups
        module.out_channels, module.in_channels = (weight.shape[1] * module.groups, outer) if module.transposed else (outer, inner)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(weight.shape)
    else:
        stored = next(module.buffers(recurse=False), weight) if weight is None else weight
        for attribute in ("num_features", "num_channels", "num_parameters"):
            if hasattr(module, attribute):
                setattr(module, attribute, stored.shape[0])


def fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put ``tensors`` in the place of the model's, in place; a layer whose tensors are smaller shrinks with them. ValueError: other names."""
    state = model.state_dict()
    if wrong := sorted(state.keys() ^ tensors.keys()):
        raise ValueError(f"model: its tensors are not those of the file; found in one of the two only: {', '.join(wrong[:5])}")
    changed = set()
    for name, tensor in tensors.items():
        owner, leaf = _parent(model, name)
        old = getattr(owner, leaf)
        if old.dim() != tensor.dim():
            raise ValueError(f"model: {name!r} has shape {tuple(old.shape)}, the file {tuple(tensor.shape)}")
        if old.shape != tensor.shape:
            changed.add(owner)
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor)
    for owner in changed:
        _recount(owner)
    return model.eval()


def _describe_class(model: nn.Module) -> dict | None:
    cls = type(model)
    if not cls.__module__.startswith("workbench.") or not callable(getattr(model, "config", None)):
        return None
    return {"kind": "class", "class": f"{cls.__module__}:{cls.__qualname__}", "config": model.config()}


def _describe_transformers(model: nn.Module) -> dict | None:
    cls = type(model)
    if not cls.__module__.startswith("transformers."):
        return None
    return {"kind": "transformers", "class": cls.__name__, "config_class": type(model.config).__name__, "attention": model.config._attn_implementation,
            "config": json.loads(model.config.to_json_string(use_diff=False))}


def _from_class(meta: Mapping) -> nn.Module:
    if not re.fullmatch(r"workbench(\.\w+)+:\w+", meta["class"]):
        raise ArtifactError(f"class {meta['class']!r} is not one of the workbench")
    module, _, name = meta["class"].partition(":")
    cls = getattr(importlib.import_module(module), name)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == module and hasattr(cls, "config")):
        raise ArtifactError(f"class {meta['class']!r} is not a network of the workbench")
    with torch.device("meta"):  # no memory for weights that are replaced anyway: a forged width costs nothing
        model = cls(**meta["config"])
    fixed = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    if not fixed and dict(model.named_buffers()).keys() <= model.state_dict().keys():
        return model
    with torch.random.fork_rng(devices=[]):  # tensors that the file does not hold (a window, say) come from the constructor
        return cls(**meta["config"])


def _from_transformers(meta: Mapping) -> nn.Module:
    import transformers  # heavy, and only needed for its own models

    cls, config = getattr(transformers, meta["class"], None), getattr(transformers, meta["config_class"], None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel) and isinstance(config, type)
            and issubclass(config, transformers.PretrainedConfig)):
        raise ArtifactError(f"{meta['class']!r} is no model of transformers {transformers.__version__}")
    _refuse_remote({"config": meta["config"], "attn_implementation": meta["attention"]})
    settings = config.from_dict(dict(meta["config"]))
    settings._attn_implementation = meta["attention"]
    with torch.random.fork_rng(devices=[]):  # its constructor draws weights, which are replaced; the caller's random numbers stay as they were
        return cls(settings)


def _refuse_remote(config) -> None:
    """ArtifactError: the configuration would make transformers fetch code or weights."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if (key in REMOTE and value) or ("attn_implementation" in key and value not in (None, "eager", "sdpa", "flash_attention_2", "flex_attention")):
            raise ArtifactError(f"the configuration asks for {key} = {value!r}, which may fetch code or weights")
        for inner in value if isinstance(value, list) else (value,):
            _refuse_remote(inner)


def restore(artifact: Artifact, model: nn.Module | None = None) -> nn.Module:
    """The network of checked file contents; ``model`` as in :func:`load`."""
    meta = artifact.meta
    tensors = dict(artifact.tensors) | {name: artifact.tensors[of] for name, of in meta.get("aliases", {}).items()}
    kind = meta.get("kind")
    if model is not None:
        return fit(copy.deepcopy(model), {name: t for name, t in tensors.items() if name not in meta.get("extra", ())})
    if kind == "class":
        return fit(_from_class(meta), tensors)
    if kind == "transformers":
        return fit(_from_transformers(meta), tensors)
    if kind == "graph" and artifact.graph is not None:
        return GraphNet(artifact.graph, tensors).eval()
    if kind == "weights":
        raise ArtifactError(f"the file holds weights only ({meta.get('reason', 'no class, no graph')}): "
                            f"hand in the original network, load(path, model=…); its class was {meta.get('was', 'unknown')}")
    raise ArtifactError(f"unknown kind {kind!r}")


def _stored(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state's tensors, each once, and the names that share one (tied embeddings)."""
    tensors, aliases, seen = {}, {}, {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if key in seen:
            aliases[name] = seen[key]
        else:
            seen[key], tensors[name] = name, tensor
    return tensors, aliases


def _same(a: nn.Module, b: nn.Module, example) -> bool:
    with torch.no_grad():
        return torch.equal(forward(a, example), forward(b, example))


def describe(model: nn.Module, example=None) -> Artifact:
    """What :func:`save_model` writes: tensors, meta and graph, in the first form that restores the outputs exactly."""
    tensors, aliases = _stored(model)
    shared = {"aliases": aliases} if aliases else {}
    model = copy.deepcopy(model).eval()
    reason = "no example to capture its graph with"
    for meta in filter(None, (_describe_class(model), _describe_transformers(model))):
        candidate = Artifact(tensors, meta | shared)
        try:
            if example is None or _same(restore(candidate), model, example):
                return candidate
            reason = f"its class, rebuilt from {meta['class']}, gives other outputs"
        except Exception as error:  # a pruned shape that the class cannot take, in whatever way: the graph is tried next
            reason = f"its class cannot be rebuilt: {error}"
    if example is not None:
        try:
            graph, extra = capture(model, example)
            candidate = Artifact(tensors | extra, {"kind": "graph", "extra": sorted(extra)} | shared, graph)
            if _same(restore(candidate), model, example):
                return candidate
            reason = "its captured graph gives other outputs"
        except (NotCapturable, ArtifactError) as error:
            reason = str(error)
    return Artifact(tensors, {"kind": "weights", "reason": reason, "was": type(model).__name__} | shared)


def save_model(path: str | os.PathLike, model: nn.Module, example=None) -> int:
    """Write one file, return its bytes. With ``example`` the file is checked to restore the same outputs; see the module's docstring."""
    artifact = describe(model, example)
    return save(path, artifact.tensors, artifact.meta, artifact.graph)


def load(path: str | os.PathLike, model: nn.Module | None = None) -> nn.Module:
    """The network of a file, in evaluation mode; its outputs are those of the saved one, bit for bit (same machine, same number of threads).

    ``model``: the network before compression; a copy takes the file's weights and shapes. ArtifactError: a damaged file, or one that needs it.
    """
    artifact = read(path)
    try:
        return restore(artifact, model)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except Exception as error:
        if model is not None:
            raise
        raise ArtifactError(f"{path}: the network cannot be rebuilt: {error}") from error


def packed_bytes(model: nn.Module, example=None) -> int:
    """Bytes of the file really written: weights as they are, the class and its configuration (a graph only if ``example`` is given and needed)."""
    with tempfile.TemporaryDirectory() as folder:
        return save_model(Path(folder) / "packed", model, example)
