"""What attends: while a method is active, the model's attention layers go through here, by `transformers`' own registry of attention functions.

    before an attention layer   `Run.enter` (a forward pre-hook) makes an empty cache one that can be compressed and hands the layer on
    in it                       `attend` takes the mask's columns of the tokens held, calls the model's own attention (SDPA or eager), and then,
                                after a prefill, compresses; after later tokens it lets the method evict and packs what has piled up

On leaving, hooks, projections and the model's attention function are as they were.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from .cache import KVLayer, SharedLayer, claim
from .compress import check_ratio, compress
from .layer import Layer

PREFIX = "kv_"
MASKS = {"sdpa": sdpa_mask, "eager": eager_mask}


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention modules of a decoder, in order. ValueError names what a model lacks; TypeError: it is none of Hugging Face's."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: a Hugging Face PreTrainedModel is needed, found {type(model).__name__}")
    name = type(model).__name__
    found = [m for m in model.modules() if getattr(m, "layer_idx", None) is not None and hasattr(m, "is_causal") and hasattr(m, "scaling")]
    indices = [m.layer_idx for m in found]
    if model.config.is_encoder_decoder or not found or not all(m.is_causal for m in found) or indices != list(range(len(found))):
        raise ValueError(f"model: {name} is not a decoder whose every layer has one causal self-attention (found attention in layers {indices}); "
                         "decoders of the Llama, Qwen2, Mistral and GPT-2 types are")
    if len(found) != found[0].config.num_hidden_layers:
        raise ValueError(f"model: {name} has {found[0].config.num_hidden_layers} layers, but attention that can be compressed in {len(found)}")
    for module in found:
        takes = inspect.signature(module.forward).parameters
        if not hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS") or "kwargs" not in takes or "past_key_values" not in takes:
            raise ValueError(f"model: {type(module).__name__} does not call attention through transformers' AttentionInterface")
        if module.config._attn_implementation.removeprefix(PREFIX) not in MASKS:
            raise ValueError(f"model: attention {module.config._attn_implementation!r} gives no masks to work with; "
                             "load the model with attn_implementation='sdpa' or 'eager'")
    return found


@dataclass(frozen=True)
class Step:
    """What the pre-hook hands to the attention function of one layer."""

    run: Run
    cache: KVLayer | SharedLayer
    fresh: bool
    rope: tuple[Tensor, Tensor] | None


class Reached(Exception):
    """The layer is there after which nothing more is needed."""


class Run:
    """One ``with`` block on one model: the methods at work, ``cache`` (the last one compressed) and ``tally`` (attention entries computed for scores)."""

    def __init__(self, modules: list[nn.Module]):
        self.layers = len(modules)
        self.methods: list[Any] = []
        self.forget = 0  # so many of a prompt's last tokens are left out of the cache (`decode` repeats the last one)
        self.captured: list[Layer] | None = None  # a list: layers are put there instead of being compressed
        self.cache: Any = None
        self.tally: Counter = Counter()
        self.until: int | None = None  # the layer after whose attention a captured prefill ends
        self.waiting: list[tuple[Layer, KVLayer]] = []
        self.ids: Tensor | None = None  # of a forward pass that has reached the embedding,
        self.now: Tensor | None = None  # and of the one that is in the layers
        self.notes: dict[Any, Any] = {}

    def the(self, function: str) -> Any:
        """The method that has this function, or None."""
        return next((m for m in self.methods if hasattr(m, function)), None)

    def add(self, method: Any) -> None:
        """ValueError: two methods that do the same thing."""
        check_ratio(getattr(method, "ratio", 0))
        for function in ("scores", "encode", "attend", "layer_map"):
            if hasattr(method, function) and (other := self.the(function)) is not None:
                raise ValueError(f"method: {type(other).__name__} and {type(method).__name__} both have `{function}`; one method of a kind can be active")
        if any(hasattr(a, "step") and hasattr(b, "encode") for a, b in [(method, m) for m in self.methods] + [(m, method) for m in self.methods]):
            raise ValueError("method: one that evicts while decoding (`step`) would unpack and pack the whole cache at every token; combine others")
        self.methods.append(method)

    def embed(self, module: nn.Module, args: tuple) -> None:
        """The pre-hook of the model's input embedding."""
        self.ids = args[0]

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The pre-hook of an attention layer."""
        cache, index = kwargs.get("past_key_values"), module.layer_idx
        if cache is None:  # called without a cache: nothing to compress
            return None
        sharing = self.the("layer_map")
        layer = claim(cache, index, None if sharing is None else sharing.layer_map.get(index))
        if layer is None:  # filled before the method was there
            return None
        root = layer.root if isinstance(layer, SharedLayer) else layer
        root.expected = True
        if not index:
            self.notes, self.now, self.ids = {}, self.ids, None
        fresh = root.seen == 0 if layer is root else bool(self.waiting)
        if fresh:
            self.cache = cache
            self.waiting = self.waiting if index else []
        return args, {**kwargs, "kv_step": Step(self, layer, fresh, kwargs.get("position_embeddings"))}

    def attend(self, inner: Callable, step: Step, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        """Output (batch, q, H, head_dim) and, of eager attention, its weights; then the cache's turn."""
        root = step.cache.root if isinstance(step.cache, SharedLayer) else step.cache
        mask = columns_held(root, mask, query)
        rope = (*step.rope, apply) if step.rope and (apply := getattr(sys.modules[type(module).__module__], "apply_rotary_pos_emb", None)) else None
        sliding = kwargs.get("sliding_window") is not None
        layer = Layer(module.layer_idx, self.layers, key, value, query, mask, kwargs["scaling"], self.now, rope, sliding, root, root.state, self.notes,
                      self.tally)
        if (method := self.the("attend")) is not None and (out := method.attend(layer)) is not None:
            out = out, None
        else:
            out = inner(module, query, key, value, mask, **kwargs)
        if step.fresh:
            self.prefilled(layer, step.cache)
        elif step.cache is root:
            self.stepped(layer, root)
        return out

    def prefilled(self, layer: Layer, cache: KVLayer | SharedLayer) -> None:
        """Compresses the layer, or, where budgets or shared layers depend on others, all of them after the last."""
        if isinstance(cache, KVLayer):
            self.waiting.append((layer, cache))
        together = self.captured is not None or self.the("budgets") is not None or self.the("layer_map") is not None
        if together and layer.index < (self.layers - 1 if self.until is None else self.until):
            return
        pairs, self.waiting = self.waiting, []
        if self.captured is not None:
            self.captured += [replace(layer, cache=None) for layer, _ in pairs]
            if layer.index == self.until:
                raise Reached
        else:
            compress(pairs, self.the("scores"), self.the("encode"), self.forget)

    def stepped(self, layer: Layer, cache: KVLayer) -> None:
        """Eviction while decoding, and packing of the tail."""
        if (method := self.the("step")) is not None:
            with torch.no_grad():
                index = method.step(layer)
            cache.state = layer.state
            if index is not None:
                cache.keep(index)
        if (method := self.the("encode")) is not None and cache.keys.shape[2] >= method.residual:
            cache.fold(method.encode)


def columns_held(cache: KVLayer, mask: Tensor | None, query: Tensor) -> Tensor | None:
    """The columns (batch, 1 or H, q, n) of the model's mask (batch, 1, q, all seen) that belong to tokens held; None where all are looked at."""
    if not cache.evicted or (mask is None and not cache.ragged):
        return mask
    if mask is None:
        mask = torch.ones(1, 1, query.shape[2], cache.seen, dtype=torch.bool, device=query.device)
    places = cache.places()
    size = (max(len(mask), len(places)), places.shape[1], mask.shape[2], -1)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    taken = mask.expand(*size).gather(3, places.clamp(min=0)[:, :, None].expand(*size)).masked_fill((places < 0)[:, :, None], hidden)
    return taken if places.shape[1] == 1 else taken.repeat_interleave(query.shape[1] // places.shape[1], 1)


def _attend(base: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> Any:
    inner = sdpa_attention_forward if base == "sdpa" else sys.modules[type(module).__module__].eager_attention_forward
    step = kwargs.pop("kv_step", None)
    if step is None:
        return inner(module, query, key, value, attention_mask, **kwargs)
    return step.run.attend(inner, step, module, query, key, value, attention_mask, **kwargs)


for _base, _mask in MASKS.items():
    AttentionInterface.register(PREFIX + _base, partial(_attend, _base))
    AttentionMaskInterface.register(PREFIX + _base, _mask)

RUNS: weakref.WeakKeyDictionary[nn.Module, Run] = weakref.WeakKeyDictionary()


@contextmanager
def running(model: nn.Module, method: Any = None) -> Iterator[Run]:
    """``method`` at work on ``model``, beside those whose block this one is in; without a method, the model reads compressed caches and makes none."""
    modules = attention_layers(model)
    with ExitStack() as stack:
        run = RUNS.get(modules[0])
        if run is None:
            run = RUNS[modules[0]] = Run(modules)
            stack.callback(RUNS.pop, modules[0])
            for config in {id(m.config): m.config for m in modules}.values():
                stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = PREFIX + config._attn_implementation
            stack.callback(model.get_input_embeddings().register_forward_pre_hook(run.embed).remove)
            for module in modules:
                stack.callback(module.register_forward_pre_hook(run.enter, with_kwargs=True).remove)
        if method is not None:
            run.add(method)
            stack.callback(run.methods.remove, method)
        for index, root in getattr(method, "layer_map", {}).items():
            if not 0 <= root < index < len(modules) or root in method.layer_map:
                raise ValueError(f"layer_map: a layer can share the cache of an earlier one that has its own; found {index} → {root}")
            for projection in (getattr(modules[index], name, None) for name in ("k_proj", "v_proj")):
                if isinstance(projection, nn.Linear):  # what nobody reads need not be computed
                    projection.forward = partial(_nothing, projection.out_features)
                    stack.callback(projection.__dict__.pop, "forward")
        yield run


def _nothing(features: int, x: Tensor) -> Tensor:
    return x.new_zeros(()).expand(*x.shape[:-1], features)
