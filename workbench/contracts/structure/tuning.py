"""What a loader yields, and the few steps of training that repair a compressed network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .trace import forward, shape_text


def inputs_and_labels(batch: Any) -> tuple[Any, Tensor | None]:
    """What a loader yields — a tensor, (inputs, labels), or a Hugging Face dict with "labels" — as (inputs for ``forward``, labels or None)."""
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != "labels"}, batch.get("labels")
    if isinstance(batch, (tuple, list)):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def first(inputs: Any, n: int = 2) -> Any:
    return {k: v[:n] for k, v in inputs.items()} if isinstance(inputs, Mapping) else inputs[:n]


def batches(data: Iterable) -> Iterator[tuple[Any, Tensor | None]]:
    empty = True
    for batch in data:
        empty = False
        yield inputs_and_labels(batch)
    if empty:
        raise ValueError("data: the loader yields no batch")


def finetune(model: nn.Module, data: Iterable, steps: int, learning_rate: float = 1e-3) -> None:
    """``steps`` steps of AdamW with a cosine schedule on the loader's labels (cross-entropy), in place; the loader is repeated as needed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    done = 0
    while done < steps:
        for inputs, labels in batches(data):
            if labels is None:
                raise ValueError("data: fine-tuning needs batches of (inputs, labels)")
            try:
                loss = nn.functional.cross_entropy(forward(model, inputs), labels)
            except (RuntimeError, IndexError) as error:
                raise ValueError(f"data: inputs of {shape_text(inputs)} and labels of {shape_text(labels)} do not fit the model: {error}") from error
            if not torch.isfinite(loss):
                raise ValueError(f"finetune_steps: the loss is {loss.item()} at step {done}; are the inputs finite?")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (done := done + 1) == steps:
                break
    model.eval()
