"""Conditional pruning at run time: every image computes only the channels that its own input asks for (after Gao et al. 2019, section 3).

    input ──► average per channel ──► |W| summed over positions ──► the k most promising outputs ──► only those filters run
                                                                                └──► the next layer reads only those channels

The predictor needs no training here; batch norm is folded into the weights, so that a channel that is not computed is exactly zero behind ReLU.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...contracts.structure.channels import channel_groups
from . import Pruned, inside_blocks
from .granularity import check_ratio, percent


class GatedConv(nn.Module):
    """Computes ``count`` of its filters per image: (N, in, H, W) -> (N, out, H', W'), zero where a filter was skipped.

    ``source``: the gated layer that writes its input; the channels which that one skipped are not read.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, count: int):
        super().__init__()
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.detach()
        self.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
        self.bias = nn.Parameter(norm.bias.detach() + scale * (bias - norm.running_mean))
        self.settings = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        self.count, self.source, self.active = count, None, None

    def saliency(self, x: Tensor) -> Tensor:
        """(N, out): how much each filter could answer, from the averages of its input channels alone."""
        return F.linear(x.abs().mean((2, 3)), self.weight.abs().sum((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        self.active = self.saliency(x).topk(self.count).indices.sort(1).values
        rows = []
        for i, chosen in enumerate(self.active):
            weight, image = self.weight[chosen], x[i:i + 1]
            if self.source:
                read = self.source[0].active[i]
                weight, image = weight[:, read], image[:, read]
            part = F.conv2d(image, weight, self.bias[chosen], **self.settings)
            rows.append(part.new_zeros(1, len(self.bias), *part.shape[2:]).index_copy(1, chosen, part))
        return torch.cat(rows)


def gate(model: nn.Module, ratio: float, example) -> Pruned:
    """A copy in which every convolution that a batch norm and another layer follow skips a share ``ratio`` of its channels per image.

    ValueError: ratio outside [0, 1), no such convolution.
    """
    check_ratio(ratio)
    gated = copy.deepcopy(model)
    if not ratio:
        return Pruned(gated, {"kept": percent([1])})
    found: dict[str, GatedConv] = {}
    groups = [g for g in inside_blocks(channel_groups(model, example)) if len(g.norms) == 1 and not g.depthwise
              and isinstance(g.producers[0].module, nn.Conv2d) and g.producers[0].module.groups == 1 and isinstance(g.norms[0].module, nn.BatchNorm2d)]
    for group in groups:
        producer, norm = group.producers[0], group.norms[0]
        layer = GatedConv(producer.module, norm.module, max(1, group.size - round(ratio * group.size)))
        for name, module in ((producer.name, layer), (norm.name, nn.Identity())):
            parent, _, leaf = name.rpartition(".")
            setattr(gated.get_submodule(parent), leaf, module)
        found[producer.name] = layer
    if not found:
        raise ValueError("model: channel gating needs a convolution with a batch norm; the model has none")
    for group in groups:
        for consumer in group.consumers:
            if consumer.name in found:
                found[consumer.name].source = (found[group.producers[0].name],)  # in a tuple: a reader does not own the layer before it
    return Pruned(gated.eval(), {"kept": percent(layer.count / len(layer.bias) for layer in found.values())})
