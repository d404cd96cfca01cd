"""The classic evictions from the key–value cache, each written once: rivals everywhere, and what people look for first.

A cache of L layers, H key–value heads and head size D holds 2·L·H·n·D numbers for n tokens, and every decoded token reads them all. An eviction scores
the tokens of each layer and head and lets the highest n − ⌊ratio·n⌋ stay. With queries $q_i$ and keys $k_j$, the attention that token j gets from i is

$$A_{ij} = \\mathrm{softmax}_j\\left(q_i^\\top k_j / \\sqrt{D}\\right), \\quad j \\le i.$$

Keys are held as they were rotated, so that positions stay those of the text. Several query heads share one key–value head: it gets their mean.
Quantised caches are in :mod:`.quantized`.
"""
# classic: full-cache | The full cache: all keys and values of all tokens, the control (Vaswani et al., incremental decoding) | 2017 | classics.Full
# classic: random-tokens | Random tokens of the cache, the control that every eviction must beat | 2023 | classics.RandomTokens
# classic: streaming-llm | StreamingLLM: attention sinks and a window of recent tokens (Xiao et al.) | 2023 | classics.StreamingLLM
# classic: sink-window | Sinks and a rolling window while decoding (Xiao et al., StreamingLLM, section 3.2) | 2023 | classics.SinkWindow
# classic: h2o | H2O: heavy hitters by accumulated attention, at the end of the prefill (Zhang et al.) | 2023 | classics.H2O
# classic: heavy-recent | Heavy hitters and recent tokens, evicted at every decoded token (Zhang et al., H2O, algorithm 1) | 2023 | classics.HeavyRecent
# classic: snapkv | SnapKV: what the last prompt tokens attend to, pooled (Li et al.) | 2024 | classics.SnapKV
# classic: pyramidkv | PyramidKV: SnapKV with more tokens in lower layers (Cai et al.) | 2024 | classics.PyramidKV
# classic: key-norm | Small key norms stay (Devoto et al.) | 2024 | classics.KeyNorm
# classic: kv-quantization | Uniform 8- and 4-bit quantisation of keys and values, one scale a token (Sheng et al., FlexGen) | 2023 | quantized.Quantized
# classic: kivi | KIVI: keys quantised per channel, values per token (Liu et al.) | 2024 | quantized.KIVI

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ...contracts.sequence import Layer, Press, kept_tokens, protect


@dataclass(frozen=True)
class Full(Press):
    """Everything stays: the control. With batch b it holds 2·L·b·H·n·D numbers, and decoding with it is plain generation."""


@dataclass(frozen=True)
class RandomTokens(Press):
    """Uniformly random scores, for each layer and head its own: what any score must beat."""

    ratio: float = 0.5
    seed: int = 0

    def scores(self, layer: Layer) -> Tensor:
        draw = torch.Generator().manual_seed(self.seed * 7919 + layer.index)
        return torch.rand(layer.keys.shape[:3], generator=draw).to(layer.keys.device)


@dataclass(frozen=True)
class StreamingLLM(Press):
    """The first ``sinks`` tokens and the most recent ones (Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024, section 3.2).

    Softmax has to put its mass somewhere; trained models put what nobody needs onto the first tokens, which all later ones can see. A pure window loses
    these *sinks* and breaks down as soon as it slides; four of them are enough to repair it. The score of token j is j, and that of a sink +∞. What lies
    between is gone, whatever the question. Here positions stay those of the text (the paper counts inside the cache, for texts longer than the training).
    """

    ratio: float = 0.5
    sinks: int = 4

    def scores(self, layer: Layer) -> Tensor:
        return protect(layer.positions.expand(len(layer.keys), 1, -1).float(), first=self.sinks)


@dataclass(frozen=True)
class SinkWindow(Press):
    """StreamingLLM as it streams: never more than ``sinks`` + ``window`` tokens a layer, during decoding too (Xiao et al., ICLR 2024, section 3.2).

    After each token, the oldest one that is no sink leaves. Memory and time per token are constant however long the text becomes.
    """

    window: int = 256
    sinks: int = 4

    def scores(self, layer: Layer) -> Tensor:
        return StreamingLLM(0.0, self.sinks).scores(layer)

    def budgets(self, layers: Sequence[Layer]) -> list[int]:
        return [min(layer.keys.shape[2], self.sinks + self.window) for layer in layers]

    def step(self, layer: Layer) -> Tensor | None:
        n, budget = layer.keys.shape[2], self.sinks + self.window
        if n <= budget:
            return None
        slots = torch.arange(n, device=layer.keys.device)
        return slots[(slots < self.sinks) | (slots >= n - self.window)].expand(len(layer.keys), 1, -1)


@dataclass(frozen=True)
class H2O(Press):
    """Heavy hitters: the attention a token has received from all queries so far (Zhang et al., H2O, NeurIPS 2023, section 4).

    $$s_j = \\sum_{i} A_{ij}, \\qquad \\text{and the share } recent \\text{ of what stays is the newest tokens.}$$

    Attention follows a power law: few tokens collect most of it, again and again. The sum favours old tokens, which more queries have seen, and it
    costs all n² attention entries, which fused kernels never write down; here they are computed in strips, and counted. This form evicts once, at the
    end of the prefill, so that it can be compared with others at equal bytes; `HeavyRecent` evicts while decoding, as the paper does.
    """

    ratio: float = 0.5
    recent: float = 0.5

    def scores(self, layer: Layer) -> Tensor:
        mass = layer.per_kv_head(layer.received())
        return protect(mass, last=int(self.recent * kept_tokens(mass.shape[-1], self.ratio)))


@dataclass(frozen=True)
class HeavyRecent(Press):
    """H2O as its paper runs it: at most ``heavy`` + ``recent`` tokens a head, and at each new token the lightest one goes (algorithm 1).

    The accumulated attention $s_j$ travels with the tokens; each decoded token adds its row of A, computed for what is still there: a greedy policy,
    which never sees what it has thrown away.
    """

    heavy: int = 128
    recent: int = 128

    def scores(self, layer: Layer) -> Tensor:
        layer.state["mass"] = layer.per_kv_head(layer.received())
        return protect(layer.state["mass"], last=self.recent)

    def budgets(self, layers: Sequence[Layer]) -> list[int]:
        return [min(layer.keys.shape[2], self.heavy + self.recent) for layer in layers]

    def step(self, layer: Layer) -> Tensor | None:
        n, mass = layer.keys.shape[2], layer.state["mass"]
        mass = layer.state["mass"] = F.pad(mass, (0, n - mass.shape[2])) + layer.per_kv_head(layer.received())
        if n <= self.heavy + self.recent:
            return None
        order = protect(mass, last=self.recent).argsort(dim=-1, descending=True, stable=True)
        return order[..., :self.heavy + self.recent].sort(-1).values


@dataclass(frozen=True)
class SnapKV(Press):
    """What the last ``window`` prompt tokens attend to, smoothed over ``kernel`` neighbours (Li et al., SnapKV, NeurIPS 2024, section 4.2).

    $$s_j = \\mathrm{pool}_{kernel}\\Big(\\tfrac{1}{w}\\sum_{i > n - w} A_{ij}\\Big), \\qquad \\text{the window itself stays.}$$

    The end of a prompt, usually the question, already looks where the answer will look; w rows of attention suffice to see it (w·n entries instead
    of n²). Pooling keeps the neighbours of a found token, since a lone token of a number or a name is of no use. A question that stands before the
    context is not in the window, and then this score sees little. The paper pools by the maximum or the mean; here by the mean, as its code does.
    """

    ratio: float = 0.5
    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"window, kernel: a window of at least 1 and an odd kernel are needed, found {self.window} and {self.kernel}")

    def scores(self, layer: Layer) -> Tensor:
        if layer.keys.shape[2] <= self.window:
            raise ValueError(f"window: the prompt must be longer than the window of {self.window} tokens, found {layer.keys.shape[2]}")
        seen = layer.per_kv_head(layer.attention(self.window).mean(2))
        pooled = F.avg_pool1d(seen[..., :-self.window], self.kernel, stride=1, padding=self.kernel // 2)
        return protect(F.pad(pooled, (0, self.window)), last=self.window)


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's scores with budgets that fall from the lowest layer to the highest (Cai et al., PyramidKV, 2024, section 3.2).

    Lower layers spread their attention over the whole text, higher ones gather it on few tokens. With m tokens a layer on average,
    layer ℓ of L gets $k_\\ell = \\tfrac{m}{\\beta} + 2\\,(m - \\tfrac{m}{\\beta})\\,\\tfrac{L - 1 - \\ell}{L - 1}$, here flatter where the lowest
    would get more than there are; the sum over layers stays L·m.
    """

    beta: float = 20.0

    def budgets(self, layers: Sequence[Layer]) -> list[int]:
        n, count = layers[0].keys.shape[2], len(layers)
        mean = kept_tokens(n, self.ratio)
        low = max(mean / self.beta, 2 * mean - n, 1)  # the lowest layer gets 2m − low, of which there must be enough
        exact = [low + 2 * (mean - low) * (count - 1 - i) / (count - 1) for i in range(count)] if count > 1 else [mean]
        edges = [math.floor(sum(exact[:i]) + 0.5) for i in range(count + 1)]  # differences of rounded sums add up to the whole
        return [b - a for a, b in pairwise(edges)]


@dataclass(frozen=True)
class KeyNorm(Press):
    """$s_j = -\\lVert k_j \\rVert_2$: tokens with *small* keys stay (Devoto et al., A Simple and Effective L2 Norm-Based Strategy, EMNLP 2024, section 3).

    In trained models keys of small norm tend to receive much attention, which costs no attention entry to know. Whether that holds is a property of the model:
    nothing in the softmax demands it.
    """

    ratio: float = 0.5

    def scores(self, layer: Layer) -> Tensor:
        return -layer.keys.float().norm(dim=-1)
