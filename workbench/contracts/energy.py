"""What a datapath spends: counters of what was really done, and the table that turns them into energy."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Energy:
    """A table to edit: pJ a multiply-accumulate, pJ a byte of on-chip memory, mW of leakage. The first two are published 45 nm figures (Horowitz,
    ISSCC 2014: 8-bit multiply and 32-bit add 0.3 pJ, 8 KB SRAM 1.25 pJ a byte); `calibrated` scales both to a stated power."""

    mac: float = 0.3
    sram: float = 1.25
    leakage: float = 0.15

    def calibrated(self, spent: Counters, mhz: float, milliwatts: float) -> Energy:
        """The same table scaled so that a machine busy with ``spent`` draws ``milliwatts``. A calibration, never a measurement."""
        factor = (milliwatts - self.leakage) * 1e3 * spent.cycles / mhz / (spent.macs * self.mac + spent.sram_bytes * self.sram)
        return Energy(self.mac * factor, self.sram * factor, self.leakage)


@dataclass
class Counters:
    """Sums of what was spent; ``slots``: multiplications of the dense layer, ``weight_macs``: of its non-zero weights, ``macs``: done; ``lane_work``: by each lane."""

    cycles: int = 0
    macs: int = 0
    slots: int = 0
    weight_macs: int = 0
    weight_bytes: int = 0
    index_bits: int = 0
    activation_bytes: int = 0
    map_bits: int = 0
    output_bytes: int = 0
    lane_work: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    def __add__(self, other: Counters) -> Counters:
        return Counters(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def sram_bytes(self) -> float:
        return self.weight_bytes + self.activation_bytes + self.output_bytes + (self.index_bits + self.map_bits) / 8

    def microjoules(self, machine: Any) -> float:
        table = machine.energy
        return (self.macs * table.mac + self.sram_bytes * table.sram) / 1e6 + table.leakage * self.cycles / machine.mhz / 1e3    # pJ; mW · µs

    def report(self, machine: Any) -> dict[str, float]:
        """The counters with utilisation (work / lanes · cycles), seconds and modelled microjoules."""
        counts = {name: value for name, value in asdict(self).items() if name != "lane_work"}
        return {**counts, "utilisation": self.macs / max(1, self.cycles * machine.lanes), "seconds": self.cycles / machine.mhz / 1e6,
                "microjoules": self.microjoules(machine)}
