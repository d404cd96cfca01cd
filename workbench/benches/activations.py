"""What a network's activations cost in memory, and VGG-small's track with that counted.

    kept for backward   what autograd really saves in one training step (saved-tensor hooks; parameters and the images are not counted)
    peak at inference   the largest sum of one layer's input and output: what must be there at once where layers run one after another

Both are linear in the batch; branches that wait for their sum (residual nets) come on top of the peak.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..contracts.structure.trace import forward
from ..core.study import Metric, Result
from . import CHECKPOINTS, vision

TRAINING_BATCH = 64


def kept_for_backward(model: nn.Module, images: Tensor) -> int:
    """Bytes that one forward pass in training mode keeps for the backward pass; each storage once. ``model`` is left as it was."""
    model = copy.deepcopy(model).train()
    known = {t.untyped_storage().data_ptr() for t in (images, *model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}  # held until the end: an address that is free again would be counted for another

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in known:
            kept[place] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = forward(model, images)
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@torch.no_grad()
def _layers(model: nn.Module, images: Tensor) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """(layer, input, output) of every module without children, as it runs."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [m.register_forward_hook(lambda m, x, out: seen.append((m, x[0], out))) for m in model.modules() if not any(m.children())]
    try:
        forward(model, images)
    finally:
        for hook in hooks:
            hook.remove()
    yield from seen


def map_bytes(model: nn.Module, images: Tensor) -> int:
    """Σ batch·c·h·w·4 over the maps behind each activation function: the textbook count, by formula."""
    return sum(4 * out.numel() for layer, _, out in _layers(model, images) if isinstance(layer, nn.ReLU))


def peak_at_inference(model: nn.Module, images: Tensor) -> int:
    """Bytes of the largest input and output of one layer together."""
    return max(4 * (x.numel() + out.numel()) for _, x, out in _layers(model, images))


METRICS = {**vision.METRICS, "kept": Metric("kept for backward, batch 64 (MB)", False, 2), "peak": Metric("peak of maps, one image (KB)", False, 1)}


def measure(thing) -> Result:
    """As :func:`vision.measure` on VGG-small's images, and the activations' memory."""
    result = vision.measure(thing, "vgg-small")
    model, images = thing if isinstance(thing, nn.Module) else thing.model, vision.EXAMPLE.repeat(2, 1, 1, 1)
    memory = {"kept": kept_for_backward(model, images) / 2 * TRAINING_BATCH / 1e6, "peak": peak_at_inference(model, images[:1]) / 1e3}
    return replace(result, metrics={**result.metrics, **memory})


@lru_cache(maxsize=1)
def _data_key() -> str:
    digest = hashlib.sha256(vision.VGG_MACS.data_key().encode())
    for path in sorted(CHECKPOINTS.glob("vgg-fc-*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


VGG_MACS = replace(vision.VGG_MACS, metrics=METRICS, measure=measure, data_key=_data_key)
