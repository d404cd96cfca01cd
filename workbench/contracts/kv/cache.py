"""What a compressed cache holds. The only file that knows the cache classes of `transformers`, and of those only what is public.

A `KVLayer` takes the place of one layer of a `Cache`. It holds blocks of compressed tokens, oldest first, and a dense tail of the tokens since:

    held   [Held(block, columns), …]    block: keys and values as tensors, packed integers, …; columns: where its tokens stood in the sequence
    tail   keys, values                 (batch, kv_heads, t, head_dim)

It reports how many tokens it has *seen*, so that later tokens get their true positions and masks cover the whole sequence; the attention function of
`.attention` takes from these masks the columns of the tokens that are still held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache

Index = Tensor | Sequence[Sequence[Tensor]]


class Block:
    """Keys and values of some tokens in one form: a frozen dataclass whose tensors are all that is held, and all that a file stores."""

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each (batch, kv_heads, n, head_dim), as the model attends to them."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}


@dataclass(frozen=True)
class Dense(Block):
    """Keys and values as they came, each (batch, kv_heads, n, head_dim)."""

    keys: Tensor
    values: Tensor

    def read(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


@dataclass(frozen=True)
class Held:
    """A block and where its ``n`` tokens stood: at ``first``, ``first + 1``, … or at ``columns`` (int32).

    ``columns`` is (batch, kv_heads or 1, n); where heads hold different numbers, ``counts`` (batch, kv_heads, int32) says how many, n is the largest,
    the block is (1, 1, all of them, head_dim), head after head, and ``columns`` is as long.
    """

    block: Block
    n: int
    first: int = 0
    columns: Tensor | None = None
    counts: Tensor | None = None

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, kv_heads, n, head_dim); shorter heads are padded."""
        keys, values = self.block.read()
        if self.counts is None:
            return keys, values
        rows, _ = self._rows()
        return keys[0, 0][rows], values[0, 0][rows]

    def places(self) -> Tensor:
        """(batch or 1, kv_heads or 1, n): where the tokens stood; −1 for the padding of shorter heads."""
        if self.columns is None:
            return torch.arange(self.first, self.first + self.n).view(1, 1, -1)
        if self.counts is None:
            return self.columns.long()
        rows, missing = self._rows()
        return self.columns.long()[rows].masked_fill(missing, -1)

    def _rows(self) -> tuple[Tensor, Tensor]:
        counts = self.counts.long()
        slot = torch.arange(self.n, device=counts.device)
        missing = slot >= counts[..., None]
        return ((counts.flatten().cumsum(0).view_as(counts) - counts)[..., None] + slot).masked_fill(missing, 0), missing


class KVLayer(CacheLayerMixin):
    """One layer's keys and values, compressed or not; see the module. ``seen`` counts tokens, held or not; ``state`` is the method's, slot by slot."""

    is_sliding = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.keys = self.values = None
        self.held: list[Held] = []
        self.seen, self.state, self.is_initialized = 0, {}, False
        self.expected = False  # the attention function of `.attention` follows, which picks the right columns of the mask

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.keys, self.values = key_states[:, :, :0].clone(), value_states[:, :, :0].clone()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends (batch, kv_heads, t, head_dim) and gives all that is held."""
        if self.evicted and not self.expected:
            raise ValueError("cache: it is compressed, and the model would mask its tokens as if it were not; use it inside `with reading(model):` "
                             "or inside the `with` block of a method (workbench.contracts.sequence)")
        self.expected = False
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)
        self.seen += key_states.shape[2]
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, kv_heads, n, head_dim) of all that is held; heads that hold fewer are padded."""
        if not self.held:
            return self.keys, self.values
        keys, values = zip(*(part.read() for part in self.held), (self.keys, self.values), strict=True)
        return torch.cat(keys, 2), torch.cat(values, 2)

    def places(self) -> Tensor:
        """(batch or 1, kv_heads or 1, n): where in the sequence the tokens held stood; −1 for padding."""
        tail = torch.arange(self.seen - self.keys.shape[2], self.seen).view(1, 1, -1)
        parts = [*(part.places() for part in self.held), tail]
        shape = [max(part.shape[axis] for part in parts) for axis in (0, 1)]
        return torch.cat([part.to(self.keys.device).expand(*shape, -1) for part in parts], 2)

    @property
    def evicted(self) -> bool:
        """Whether tokens that were seen are no longer held."""
        return any(part.columns is not None for part in self.held)

    @property
    def ragged(self) -> bool:
        """Whether heads hold different numbers of tokens."""
        return any(part.counts is not None for part in self.held)

    def keep(self, index: Index | None, encode: Callable[[Tensor, Tensor], Block] = Dense, forget: int = 0) -> None:
        """Makes one block of the slots ``index``; everything else is dropped.

        index: (batch, kv_heads or 1, k), ascending, one set of slots a head; or ``[batch][kv_head]`` lists of (k,) of any length; None keeps all.
        forget: so many of the newest tokens count as not seen.
        """
        (keys, values), columns = self.read(), self.places()
        n = keys.shape[2] - forget
        self.seen -= forget
        if index is None:
            held = Held(encode(keys[:, :, :n].clone(), values[:, :, :n].clone()), n, 0, columns[..., :n].int() if self.evicted else None)
            self.state = {name: x[..., :n].clone() for name, x in self.state.items()}
        elif isinstance(index, Tensor):
            columns = columns.expand(index.shape[0], max(index.shape[1], columns.shape[1]), -1)
            wide = index.expand(len(index), keys.shape[1], -1)[..., None]
            block = encode(keys.gather(2, wide.expand(-1, -1, -1, keys.shape[3])), values.gather(2, wide.expand(-1, -1, -1, values.shape[3])))
            held = Held(block, index.shape[2], 0, columns.gather(2, index.expand(*columns.shape[:2], -1)).int())
            self.state = {name: x.gather(2, index.expand(*x.shape[:2], -1)) for name, x in self.state.items()}
        else:
            columns = columns.expand(*keys.shape[:2], -1)
            place = [(b, h, slots) for b, row in enumerate(index) for h, slots in enumerate(row)]
            flat = [torch.cat([x[b, h, slots] for b, h, slots in place]) for x in (keys, values, columns)]
            counts = torch.tensor([[len(slots) for slots in row] for row in index], dtype=torch.int32, device=keys.device)
            held = Held(encode(flat[0][None, None], flat[1][None, None]), int(counts.max()), 0, flat[2].int(), counts)
            self.state = {}
        self.held = [held]
        self.keys, self.values = keys[:, :, :0].clone(), values[:, :, :0].clone()

    def fold(self, encode: Callable[[Tensor, Tensor], Block]) -> None:
        """Makes a block of the tail."""
        n = self.keys.shape[2]
        self.held.append(Held(encode(self.keys, self.values), n, self.seen - n))
        self.keys, self.values = self.keys[:, :, :0].clone(), self.values[:, :, :0].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the newest ``−tokens_to_remove`` tokens. ValueError where they are inside a packed block."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: a negative number of tokens is needed, found {tokens_to_remove}")
        n = min(-tokens_to_remove, self.seen)
        if not n:
            return
        tail = self.keys.shape[2]
        if n > tail and not all(isinstance(part.block, Dense) for part in self.held):
            raise ValueError(f"tokens_to_remove: only the {tail} newest tokens can be taken back, found {n}: the others are packed")
        self.seen -= n
        if n <= tail:
            self.keys, self.values = self.keys[:, :, :tail - n].clone(), self.values[:, :, :tail - n].clone()
            return
        self.seen += n
        places = self.places()
        stays = ((places >= 0) & (places < self.seen - n)).expand(*self.keys.shape[:2], -1)
        self.keep(rectangle([[head.nonzero()[:, 0] for head in row] for row in stays]))
        self.seen -= n

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Rows of the batch. ValueError where they are packed or of different lengths."""
        if not self.is_initialized:
            return
        if self.ragged or not all(isinstance(part.block, Dense) for part in self.held):
            raise ValueError("cache: rows of a packed cache, or of one whose heads hold different numbers, cannot be reordered (beam search)")
        self.keys, self.values = self.keys[indices], self.values[indices]
        self.held = [Held(Dense(part.block.keys[indices], part.block.values[indices]), part.n, part.first,
                          part.columns if part.columns is None or len(part.columns) == 1 else part.columns[indices]) for part in self.held]
        self.state = {name: x[indices] for name, x in self.state.items()}

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        parts = [t for part in self.held for t in (*part.block.tensors().values(), part.columns, part.counts)]
        return [t for t in (self.keys, self.values, *parts, *self.state.values()) if t is not None]


class SharedLayer(CacheLayerMixin):
    """A layer that attends to what an earlier one, its ``root``, holds, and holds nothing."""

    is_sliding = False
    is_croppable = True

    def __init__(self, root: KVLayer) -> None:
        super().__init__()
        self.root, self.is_initialized = root, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is held here."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.root.read()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.root.get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        return self.root.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        """The root is reset by itself, and so are the others below."""

    crop = reorder_cache = batch_repeat_interleave = batch_select_indices = lambda self, *_: None

    def tensors(self) -> list[Tensor]:
        return []


def rectangle(index: Sequence[Sequence[Tensor]]) -> Index:
    """(batch, kv_heads, k) where all lists are equally long, else the lists."""
    if len({len(slots) for row in index for slots in row}) > 1:
        return index
    return torch.stack([torch.stack(list(row)) for row in index])


def new_cache(layers: int = 0) -> Cache:
    """An empty cache whose layers can be compressed."""
    return Cache(layers=[KVLayer() for _ in range(layers)])


def claim(cache: Any, index: int, root: int | None = None) -> KVLayer | SharedLayer | None:
    """The layer ``index`` of ``cache`` as one that can be compressed: an empty dynamic layer is replaced, a filled one is left alone (None).

    root: the layer whose tokens it attends to. ValueError: a kind of cache that cannot shrink.
    """
    if not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache) or cache.offloading:
        how = " with offloading" if getattr(cache, "offloading", False) else ""
        raise ValueError(f"past_key_values: a dynamic cache is needed, found {type(cache).__name__}{how}")
    while len(cache.layers) <= index:
        cache.layers.append(KVLayer())
    layer = cache.layers[index]
    if isinstance(layer, (KVLayer, SharedLayer)) and not (root is not None and isinstance(layer, KVLayer) and not layer.seen):
        return layer
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, KVLayer):
        raise ValueError(f"past_key_values: layers that grow (DynamicCache) can be compressed, found {type(layer).__name__}")
    if layer.get_seq_length():
        return None
    cache.layers[index] = KVLayer() if root is None else SharedLayer(cache.layers[root])
    return cache.layers[index]


def held_tensors(cache: Cache) -> list[Tensor]:
    """All tensors of a cache, of plain dynamic layers too."""
    layers = [layer.tensors() if isinstance(layer, (KVLayer, SharedLayer)) else [layer.keys, layer.values] for layer in cache.layers]
    return [t for layer in layers for t in layer if t is not None]


def nbytes(cache: Cache) -> int:
    """Bytes that the cache really holds: keys, values, columns, scales, state; memory that tensors share, or hide behind a slice, counts once, in full."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held_tensors(cache)}
    return sum(storages.values())


def kept(cache: Cache, layer: int) -> list[list[Tensor]]:
    """``[batch][kv_head]``: the places in the sequence, ascending, whose tokens ``layer`` holds."""
    found = cache.layers[layer]
    root = found.root if isinstance(found, SharedLayer) else found
    return [[head[head >= 0] for head in row] for row in root.places().expand(*root.keys.shape[:2], -1)]
