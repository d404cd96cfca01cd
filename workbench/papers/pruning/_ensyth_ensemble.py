"""An ensemble of pruned networks as one network: members kept packed, answers combined in whole numbers.

    images (B, …) ──► member 1 … k ──► softmax, in units of 2⁻²⁴ (int64) ──► votes ──► sum over members ──► scores (B, classes)

Whole numbers make a sum independent of its order, so that a running sum over any path of removals equals the sum made from nothing, to the last bit.
The members' tensors stand in the ensemble as they stand in its file: values of the weights that are not zero, and where they stand. Tensors that two
members share (a layer left as it was, an equal mask) are there once.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from ...contracts.files import sparse
from ...contracts.files.artifact import Artifact, ArtifactError
from ...contracts.files.storage import describe, load, restore, save_model
from ...contracts.structure.trace import forward

UNIT, VOTE, TENTHS = 1 << 24, 1 << 40, 1000
COMBINERS = ("soft", "hard", "weighted", "stacked")


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the last dimension in whole units of 2⁻²⁴, int64."""
    return (logits.double().softmax(-1) * UNIT).round().long()


def votes(shares: Tensor, combine: str, accuracies: Sequence[float] = ()) -> Tensor:
    """What each member adds to the sum, int64 (members, N, classes) from `probabilities` of that shape.

    ``soft``: its probabilities. ``hard``: a vote for its answer, far above all probabilities, which then settle ties. ``weighted``: probabilities times
    its accuracy on validation, in thousandths.
    """
    if combine == "hard":
        return shares + VOTE * nn.functional.one_hot(shares.argmax(-1), shares.shape[-1])
    if combine == "weighted":
        return shares * torch.tensor([round(TENTHS * a) for a in accuracies])[:, None, None]
    return shares


@dataclass(frozen=True)
class Packed:
    """A network as a file holds it: ``network`` and ``graph`` rebuild it, ``tensors``: name -> (form, values, index or None)."""

    network: dict
    graph: dict | None
    tensors: dict[str, tuple[dict, Tensor, Tensor | None]]


def pack(member: nn.Module, example=None, encode: Callable = sparse.encode) -> Packed:
    """ValueError: a file could not bring the network back."""
    whole = describe(member, example)
    if whole.meta["kind"] == "weights":
        raise ValueError(f"members: {type(member).__name__} could not be brought back from a file: {whole.meta['reason']}")
    return Packed(whole.meta, whole.graph, {name: encode(tensor) for name, tensor in whole.tensors.items()})


class Ensemble(nn.Module):
    """Networks that answer together; ``forward(inputs) -> (B, classes)``: votes per member (``stacked``: scores of the logistic regression).

    Made by :meth:`of`; the constructor takes what :meth:`config` gives: plain numbers from which the workbench's files rebuild it. Packed weights are
    parameters without gradients, so that ``save_model``, ``load`` and the count of parameters see what is really stored.
    """

    def __init__(self, members: list[dict], tensors: list[list], combine: str = "soft", accuracies: Sequence[float] = ()):
        super().__init__()
        self.facts, self.table, self.combine, self.accuracies = members, tensors, combine, list(accuracies)
        for i, (shape, kind) in enumerate(tensors):
            blank = torch.empty(shape, dtype=getattr(torch, kind))
            if blank.is_floating_point():
                self.register_parameter(f"t{i}", nn.Parameter(blank, requires_grad=False))
            else:
                self.register_buffer(f"t{i}", blank)
        self._decoded: list = []  # in a list, which torch does not take for submodules: what counts is what is stored

    def config(self) -> dict:
        return {"members": self.facts, "tensors": self.table, "combine": self.combine, "accuracies": self.accuracies}

    @classmethod
    def of(cls, members: Sequence[Packed | nn.Module], combine: str = "soft", accuracies: Sequence[float] = (), example=None,
           stack: tuple[np.ndarray, np.ndarray] | None = None) -> Ensemble:
        """Of packed networks, or of networks, which it packs. ``accuracies``: one a member, for ``weighted``; ``stack``: matrix (members · classes, classes)
        and offset (classes,) on the members' logits, for ``stacked``; ``example``: a batch of inputs, needed for classes that are neither the workbench's
        nor transformers'. ValueError: no member, an unknown combiner, a network that a file could not bring back.
        """
        if not members:
            raise ValueError("members: an ensemble needs at least one")
        if combine not in COMBINERS:
            raise ValueError(f"combine: one of {', '.join(COMBINERS)}, found {combine!r}")
        if (combine == "weighted" and len(accuracies) != len(members)) or (combine == "stacked") != (stack is not None):
            raise ValueError(f"combine: {combine!r} needs " + {"weighted": f"{len(members)} accuracies", "stacked": "stack"}.get(combine, "no stack"))
        seen: dict[str, int] = {}
        kept: list[Tensor] = []

        def place(tensor: Tensor) -> int:
            tensor = tensor.detach().cpu().contiguous()
            digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes()).hexdigest()
            if digest not in seen:
                seen[digest] = len(kept)
                kept.append(tensor)
            return seen[digest]

        facts = []
        for member in members:
            packed = member if isinstance(member, Packed) else pack(member, example)
            places = {name: [place(values), None if index is None else place(index), how] for name, (how, values, index) in packed.tensors.items()}
            facts.append({"network": packed.network, "graph": packed.graph, "packed": places})
        stacked = [{"stack": [place(torch.from_numpy(np.asarray(part, np.float32))) for part in stack]}] if stack is not None else []
        made = cls(facts + stacked, [[list(t.shape), str(t.dtype).removeprefix("torch.")] for t in kept], combine, accuracies)
        made.load_state_dict({f"t{i}": tensor for i, tensor in enumerate(kept)})
        return made.eval()

    @property
    def members(self) -> list[nn.Module]:
        """The networks, decoded when first asked for. ArtifactError: what is stored does not fit together."""
        if not self._decoded:
            with torch.inference_mode(False):  # they outlive the call that asks first, which may run in inference mode
                for fact in self.facts:
                    if "network" in fact:
                        tensors = {name: sparse.decode(how, self._tensor(value), self._tensor(index)) for name, (value, index, how) in fact["packed"].items()}
                        self._decoded.append(restore(Artifact(tensors, fact["network"], fact["graph"])))
        return self._decoded

    def _tensor(self, number: int | None) -> Tensor | None:
        return None if number is None else getattr(self, f"t{number}").detach()

    def _apply(self, fn, recurse=True):
        self._decoded.clear()
        return super()._apply(fn, recurse)

    def __len__(self) -> int:
        return sum("network" in fact for fact in self.facts)

    def outputs(self, inputs) -> Tensor:
        """The members' logits, (members, B, classes), one member after another."""
        return torch.stack([forward(member, inputs) for member in self.members])

    def vote(self, logits: Tensor) -> Tensor:
        """(B, classes) scores from the members' logits."""
        if self.combine == "stacked":
            matrix, offset = (self._tensor(number) for number in self.facts[-1]["stack"])
            return logits.transpose(0, 1).flatten(1) @ matrix + offset
        total = votes(probabilities(logits), self.combine, self.accuracies).sum(0)
        return total.double() / (len(logits) * {"soft": UNIT, "hard": VOTE, "weighted": UNIT * TENTHS}[self.combine])

    def forward(self, inputs) -> Tensor:
        return self.vote(self.outputs(inputs))

    def together(self, inputs: Tensor) -> Tensor:
        """The same scores up to rounding, members of one architecture computed as one batch (`torch.vmap`)."""
        logits: dict[int, Tensor] = {}
        alike = defaultdict(list)
        for i, member in enumerate(self.members):
            alike[repr(member), tuple((name, tuple(t.shape)) for name, t in member.state_dict().items())].append(i)
        for group in alike.values():
            model = self.members[group[0]]
            state = stack_module_state([self.members[i] for i in group])
            found = vmap(lambda p, b, model=model: functional_call(model, (p, b), (inputs,)), in_dims=(0, 0))(*state)
            logits |= dict(zip(group, found, strict=True))
        return self.vote(torch.stack([logits[i] for i in range(len(self))]))

    def threaded(self, inputs: Tensor, threads: int = 2) -> Tensor:
        """The same scores, bit for bit, members spread over threads."""
        members = self.members
        with ThreadPoolExecutor(threads) as pool:
            return self.vote(torch.stack(list(pool.map(lambda member: _quietly(member, inputs), members))))

    def save(self, path: str | os.PathLike) -> int:
        """Write one file and return its bytes."""
        return save_model(path, self)

    @staticmethod
    def load(path: str | os.PathLike) -> Ensemble:
        """The ensemble of a file, with the same answers bit for bit. ArtifactError: damaged, or no ensemble."""
        found = load(path)
        if not isinstance(found, Ensemble):
            raise ArtifactError(f"{path}: holds a {type(found).__name__}, not an ensemble; workbench.contracts.model.load reads it")
        return found


def _quietly(member: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():  # gradients are switched off for each thread on its own
        return forward(member, inputs)
