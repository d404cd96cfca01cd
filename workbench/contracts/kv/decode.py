"""Prefill, compress, decode: what benches measure with. The last prompt token is decoded again after the compression, so that every answer token sees
the compressed cache (in a plain prefill the first one comes from the full attention of the prompt)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from .attention import Reached, Run, attention_layers, running
from .cache import new_cache
from .compress import check_ratio, compress
from .layer import Layer


@dataclass(frozen=True)
class Decoded:
    """tokens (batch, steps), logits (batch, steps, vocabulary) that each was taken from, the cache after the last step, attention entries of the scores."""

    tokens: Tensor
    logits: Tensor
    cache: Cache
    attention_entries: int


@dataclass(frozen=True)
class Prefilled:
    """A prompt's full prefill, to be compressed by many methods without running the model again: ``ids`` (batch, n) and what each layer saw."""

    ids: Tensor
    layers: list[Layer]


def _methods(press: Any) -> tuple:
    methods = () if press is None else tuple(press) if isinstance(press, Sequence) else (press,)
    for method in methods:
        check_ratio(getattr(method, "ratio", 0))
    return methods


def _check(model: nn.Module, ids: Tensor, steps: int = 1) -> None:
    if ids.ndim != 2 or ids.shape[1] < 2 or ids.dtype not in (torch.long, torch.int):
        raise ValueError(f"ids: token ids (batch, n) with n ≥ 2 are needed, found {ids.dtype} {tuple(ids.shape)}")
    if steps < 1:
        raise ValueError(f"steps: at least 1 is needed, found {steps}")
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and ids.shape[1] + steps - 1 > limit:
        raise ValueError(f"steps: {ids.shape[1]} prompt tokens and {steps} steps go past the model's {limit} positions (fewer tokens held do not free any)")


@torch.no_grad()
def prefill(model: nn.Module, ids: Tensor, until: int | None = None) -> Prefilled:
    """Runs ``ids`` (batch, n), prompts of equal length, through the model once, or no further than the attention of layer ``until``; see `Prefilled`."""
    attention_layers(model)
    _check(model, ids)
    with running(model) as run:
        if until is not None and not 0 <= until < run.layers:
            raise ValueError(f"until: a layer from 0 to {run.layers - 1} is needed, found {until}")
        layers: list[Layer] = []
        run.captured, run.until = layers, until
        try:
            with suppress(Reached):
                model(ids, past_key_values=new_cache(run.layers), use_cache=True, logits_to_keep=1)
        finally:  # the run may be that of a block around this call
            run.captured, run.until = None, None
    return Prefilled(ids, layers)


def _compressed(model: nn.Module, prompt: Tensor | Prefilled, run: Run) -> Cache:
    """The compressed cache of all but the last prompt token."""
    cache = new_cache(run.layers)
    if isinstance(prompt, Tensor):
        run.forget = 1
        try:
            model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        finally:
            run.forget = 0
        return cache
    if any(hasattr(method, name) for method in run.methods for name in ("attend", "layer_map")):
        raise ValueError("prompt: these methods change the prefill itself; hand in token ids")
    if len(prompt.layers) != run.layers:
        raise ValueError(f"prompt: the prefill ended after {len(prompt.layers)} of {run.layers} layers")
    notes: dict[Any, Any] = {}
    pairs = [(replace(layer, cache=holder, state={}, notes=notes, tally=run.tally), holder) for layer, holder in zip(prompt.layers, cache.layers, strict=True)]
    for layer, holder in pairs:
        holder.update(layer.keys, layer.values)
    compress(pairs, run.the("scores"), run.the("encode"), forget=1)
    return cache


@torch.no_grad()
def decode(model: nn.Module, prompt: Tensor | Prefilled, steps: int, press: Any = None, follow: Tensor | None = None) -> Decoded:
    """Prefills, compresses by ``press`` (a method, several, or None) and decodes ``steps`` tokens greedily.

    prompt: token ids (batch, n) of equal lengths, or a `Prefilled`. follow: (batch, steps) tokens that are fed instead of the greedy ones, so that the
    logits give their likelihood. ValueError names a wrong argument.
    """
    ids = prompt if isinstance(prompt, Tensor) else prompt.ids
    attention_layers(model)
    _check(model, ids, steps)
    if follow is not None and follow.shape != (len(ids), steps):
        raise ValueError(f"follow: tokens of shape {(len(ids), steps)} are needed, found {tuple(follow.shape)}")
    with ExitStack() as stack:
        run = stack.enter_context(running(model))
        for method in _methods(press):
            stack.enter_context(method(model) if callable(method) else running(model, method))  # a method may bring a block of its own
        cache = _compressed(model, prompt, run)
        tokens, logits, token = [], [], ids[:, -1:]
        for step in range(steps):
            logits.append(model(token, past_key_values=cache, use_cache=True).logits[:, -1])
            tokens.append(logits[-1].argmax(-1))
            token = (tokens[-1] if follow is None else follow[:, step])[:, None]
    return Decoded(torch.stack(tokens, 1), torch.stack(logits, 1), cache, run.tally["attention entries"])
