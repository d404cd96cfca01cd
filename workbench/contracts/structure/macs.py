"""What a network costs to run: multiply–accumulates of one sample, at the shapes that really occur, and parameters.

Counted are convolutions of any dimension, transposed ones, linear layers, matrix products and attention; biases, normalisations and activations are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .trace import CONV, forward, shape_text


def check_runs(model: nn.Module, example, what: str = "example") -> None:
    """ValueError, beginning with ``what``, where the model does not run on the example in evaluation mode."""
    training = [m for m in model.modules() if m.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            forward(model, example)
    except Exception as error:
        raise ValueError(f"{what}: the model does not run on one of {shape_text(example)}: {error}") from error
    finally:
        for module in training:
            module.training = True


class _Products(TorchDispatchMode):
    """Counts the floating-point operations of every matrix product and convolution that runs (two for a multiply–accumulate)."""

    flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "scaled_dot_product" in str(func):  # the processor's fused kernel is not in torch's registry
            query, key, value = args[:3]
            self.flops += 2 * query.shape[:-1].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        elif count := flop_registry.get(func._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def macs_by_layer(model: nn.Module, example) -> dict[str, int]:
    """Layer -> multiply–accumulates of one sample, biases not counted; ``"(functional)"``: attention products and calls without a layer."""
    counts: dict[str, int] = defaultdict(int)
    first = example if isinstance(example, Tensor) else next(iter(example.values() if isinstance(example, Mapping) else example))

    def count(name):
        def hook(module, inputs, output):
            if isinstance(module, nn.Linear):
                total = output.numel() * module.in_features
            elif module.transposed:  # every input value meets the whole kernel
                total = inputs[0].numel() * module.weight[0].numel()
            else:
                total = output.numel() * module.weight[0].numel()
            counts[name] += total // len(first)
        return hook

    hooks = [m.register_forward_hook(count(name)) for name, m in model.named_modules() if isinstance(m, (CONV, nn.Linear))]
    everything = _Products()
    try:
        with everything:
            check_runs(model, example)
    finally:
        for hook in hooks:
            hook.remove()
    rest = everything.flops // 2 // len(first) - sum(counts.values())
    return dict(counts) | ({"(functional)": rest} if rest > 0 else {})


def macs(model: nn.Module, example) -> int:
    """Multiply–accumulates of one sample (convolutions, linear layers, attention products) at the shapes of ``example``."""
    return sum(macs_by_layer(model, example).values())


def parameters(model: nn.Module) -> int:
    """Number of parameters, a shared one counted once."""
    return sum(p.numel() for p in model.parameters())
