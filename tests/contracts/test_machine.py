"""The machine: its numbers are torch's, its counters are those of a simulation one multiplication at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from workbench.contracts.machine import Counters, Energy, Layer, Machine, run, simulate


def slowly(machine: Machine, weight, x, stride, depthwise):
    """Every lane, sample and weight visited one by one: (cycles, macs)."""
    c_out, c_in, taps = weight.shape
    samples = (x.shape[1] - taps) // stride + 1
    cycles = macs = 0
    for first in range(0, c_out, machine.lanes):
        lanes = range(first, min(first + machine.lanes, c_out))
        for start in range(0, samples, machine.tile):
            work, steps = dict.fromkeys(lanes, 0), 0
            for t in range(start, min(start + machine.tile, samples)):
                for i in range(c_in):
                    for k in range(taps):
                        busy = []
                        for o in lanes:
                            value = x[o if depthwise else i, t * stride + k]
                            if (weight[o, i, k] != 0 or not machine.skip_weights) and (value != 0 or not machine.skip_activations):
                                busy.append(o)
                        for o in busy:
                            work[o] += 1
                        steps += bool(busy)
            macs += sum(work.values())
            cycles += max(work.values()) if machine.independent else steps
    return cycles, macs


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 2))
def test_counters_equal_the_slow_machine(seed, depthwise, independent, skip_weights, skip_activations, lanes, stride):
    rng = np.random.Generator(np.random.PCG64(seed))
    c_out = int(rng.integers(2, 11))
    c_in = 1 if depthwise else int(rng.integers(2, 5))
    weight = rng.integers(-3, 4, (c_out, c_in, 2)) * (rng.random((c_out, c_in, 2)) < 0.6)
    x = (rng.integers(-3, 4, (c_out if depthwise else c_in, 23)) * (rng.random((c_out if depthwise else c_in, 23)) < 0.7)).astype(float)
    machine = Machine(lanes=lanes, tile=5, independent=independent, skip_weights=skip_weights, skip_activations=skip_activations)
    y, counters = run(machine, Layer(weight.astype(float), x, stride=stride))
    want = F.conv1d(torch.from_numpy(x)[None], torch.from_numpy(weight.astype(float)), stride=stride, groups=c_out if depthwise else 1)[0]
    assert np.array_equal(y, want.numpy())
    assert (counters.cycles, counters.macs) == slowly(machine, weight, x, stride, depthwise)
    assert counters.lane_work.sum() == counters.macs and counters.cycles * lanes >= counters.macs


def test_groups_without_lanes_are_refused():
    with pytest.raises(ValueError, match="neither"):
        run(Machine(), Layer(np.ones((6, 2, 1)), np.ones((6, 4))))


@pytest.mark.parametrize("wrong", [{"lanes": 0}, {"tile": 0}, {"mhz": 0}])
def test_impossible_machines_are_refused(wrong):
    with pytest.raises(ValueError, match="lanes and tile"):
        Machine(**wrong)


def test_traffic_by_hand():
    weight, x = np.zeros((2, 3, 1)), np.ones((3, 20))
    weight[0, 0] = weight[1, 1] = 1
    x[1, ::2] = 0
    _, counters = run(Machine(), Layer(weight, x, index_bits=8))
    assert counters.macs == 20 + 10 and counters.cycles == 16 + 4                 # two tiles; the first lane is the slower
    assert counters.weight_bytes == 2 * 2 and counters.index_bits == 8 * 2       # both weights once a tile
    assert counters.map_bits == 2 * 20 and counters.activation_bytes == 30 and counters.output_bytes == 2 * 20


def test_simulate_leaves_no_hooks_and_keeps_what_it_does_not_know():
    net = torch.nn.Sequential(torch.nn.ReLU()).double()
    out, counters = simulate(Machine(), net, torch.ones(1, 2, 3, dtype=torch.float64), lambda name, module, x: None)
    assert torch.equal(out, torch.ones(1, 2, 3, dtype=torch.float64)) and counters == {}
    assert not net[0]._forward_hooks


def test_energy_is_linear_and_calibration_hits_the_power():
    machine, spent = Machine(), Counters(cycles=1_000, macs=5_000, weight_bytes=100, activation_bytes=5_000)
    assert (spent + spent).microjoules(machine) == pytest.approx(2 * spent.microjoules(machine))
    table = Energy().calibrated(spent, machine.mhz, 1.6)
    report = spent.report(Machine(energy=table))
    assert report["microjoules"] / report["seconds"] / 1e3 == pytest.approx(1.6)
