"""The sequence contract: the key–value cache of a Hugging Face decoder in, one that holds fewer tokens, fewer bits or fewer layers out.

    with SnapKV(ratio=.5)(model):                              # each fresh cache is compressed right after its prefill
        answer = model.generate(ids, max_new_tokens=20)
    with SnapKV(ratio=.5)(model), Quantized(bits=4)(model):    # one method that evicts and one that packs
        out = model.generate(ids, max_new_tokens=20, return_dict_in_generate=True)
    nbytes(out.past_key_values); save(out.past_key_values, "kv.wb")
    with reading(model):                                       # later turns with a compressed cache
        model.generate(longer_ids, past_key_values=load("kv.wb"))
    decode(model, ids, steps=20, press=SnapKV(ratio=.5))       # what benches measure with: tokens, logits, cache

A method is a small frozen dataclass that inherits `Press` and has one or more of these functions:

    scores(layer) -> (batch, kv_heads or 1, n)      evicts: the highest n − ⌊ratio·n⌋ of each head stay
    budgets(layers) -> one for each layer           how many stay instead: an int, or (kv_heads,) or (batch, kv_heads) for heads of different lengths
    step(layer) -> (batch, kv_heads or 1, k) | None evicts while decoding: slots that stay after new tokens; `layer.state` travels with the slots
    encode(keys, values) -> Block                   packs: quantised, factorised, …; tokens that come later are packed when ``residual`` of them are there
    layer_map = {layer: earlier layer}              shares: the layer attends to the earlier one's tokens and holds none; its k/v projections are skipped
    attend(layer) -> (batch, q, H, head_dim) | None attends itself: sparse prefill, a working set, …; None leaves it to the model

`layer` is a `Layer`: keys, values, queries, positions, mask; `attention(last=w)` and `received(last=w)` are computed when they are asked for, by a
softmax beside the model's, and counted. The tensors really shrink. Positions stay those of the text: the cache reports the tokens *seen*, so that
later tokens are rotated, masked and counted as if all were there. At ratio 0, generation is token for token the plain one. Where prompts of a batch are
padded, each is compressed as if it were alone. The model is afterwards as it was.

Not here: static and offloaded caches, encoder–decoders, layers without attention, flash kernels (they take no masks). In a prefill in chunks the
first chunk is compressed. Tokens that a sliding window has left behind are held until an eviction, which drops them first.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .files.artifact import ArtifactError
from .kv.attention import Run, running
from .kv.cache import Block, Dense, kept, nbytes, new_cache
from .kv.compress import check_ratio, kept_tokens
from .kv.decode import Decoded, Prefilled, decode, prefill
from .kv.files import load, save
from .kv.layer import Layer

__all__ = ["ArtifactError", "Block", "Decoded", "Dense", "Layer", "Prefilled", "Press", "Run", "decode", "kept", "kept_tokens", "load", "nbytes", "new_cache",
           "prefill", "protect", "reading", "save"]


@dataclass(frozen=True)
class Press:
    """A method; see the module for the functions that it may have."""

    def __post_init__(self) -> None:
        check_ratio(getattr(self, "ratio", 0))

    def __call__(self, model: nn.Module) -> AbstractContextManager[Run]:
        """Puts the method to work on ``model`` while the block lasts. As ``run``: ``run.cache``, the last one compressed, and ``run.tally``."""
        return running(model, self)


def reading(model: nn.Module) -> AbstractContextManager[Run]:
    """Lets ``model`` go on with caches that were compressed before, and compresses none."""
    return running(model)


def protect(scores: Tensor, first: int = 0, last: int = 0) -> Tensor:
    """(…, n) with the ``first`` and ``last`` tokens above all others, the very first and then the newest above all: where not even these fit, the rest go."""
    n = scores.shape[-1]
    place = torch.arange(n, device=scores.device)
    bonus = torch.where(place >= n - last, 1.0 + place, 0.0) + torch.where(place < first, 1.0 + 2 * n - place, 0.0)
    return torch.where(bonus > 0, scores.amax(-1, keepdim=True).clamp(min=0) + bonus, scores)
