"""Sparse files: every form gives the tensor back bit for bit, a structure in the zeros is found, damage is reported."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workbench.benches import vision
from workbench.contracts.files.artifact import ArtifactError, read, save
from workbench.contracts.files.sparse import decode, encode, load_sparse, save_sparse
from workbench.contracts.files.storage import packed_bytes


def zeros(shape, share, block, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape[:len(shape) - block], generator=generator) >= share
    return torch.randn(shape, generator=generator) * mask.view(*mask.shape, *[1] * block)


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(1, 12), min_size=1, max_size=4), share=st.floats(0, 1), block=st.integers(0, 3), seed=st.integers(0, 99))
def test_there_and_back(shape, share, block, seed):
    tensor = zeros(tuple(shape), share, min(block, len(shape) - 1), seed)
    assert torch.equal(decode(*encode(tensor)), tensor)


@pytest.mark.parametrize("share, block, kind, width", [(0.0, 0, "dense", None), (0.5, 0, "bitmap", 1), (0.5, 1, "bitmap", 3), (0.6, 2, "bitmap", 9),
                                                       (0.95, 0, "gaps", 1), (0.95, 2, "gaps", 9)])
def test_the_structure_is_found(share, block, kind, width):
    tensor = zeros((64, 64, 3, 3), share, block)
    how, values, index = encode(tensor)
    assert how["kind"].startswith(kind) and how.get("block") == width
    if index is not None:
        assert 4 * values.numel() + index.numel() < 4 * tensor.numel() * (1 - share) * 1.15 + 4096


def test_columns_are_found():
    tensor = torch.randn(64, 32, 3, 3) * (torch.rand(1, 32, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.6)
    how, _, index = encode(tensor)
    assert how["columns"] and how["block"] == 64 and index.numel() <= 36


def pruned(share=0.9):
    model = vision.dense("vgg-small")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(parameter.abs() >= parameter.abs().flatten().quantile(share))
    return model


def test_file_is_smaller_and_restores_outputs(tmp_path):
    model, images = pruned(), vision.calibration()[:4]
    size = save_sparse(tmp_path / "net", model)
    assert size == (tmp_path / "net").stat().st_size < packed_bytes(model) / 6
    with torch.no_grad():
        assert torch.equal(load_sparse(tmp_path / "net")(images), model(images))


def test_nothing_to_gain_is_stored_densely(tmp_path):
    model = vision.dense("vgg-small")
    assert save_sparse(tmp_path / "net", model) < packed_bytes(model) + 100
    assert not read(tmp_path / "net").meta["sparse"]


def test_a_net_of_ones_own_takes_the_original(tmp_path):
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    with torch.no_grad():
        net[0].weight.mul_(torch.rand(64, 64) > 0.9)
    save_sparse(tmp_path / "net", net, torch.zeros(2, 64))
    x = torch.randn(3, 64)
    with torch.no_grad():
        assert torch.equal(load_sparse(tmp_path / "net")(x), net(x))


def test_damage_is_reported(tmp_path):
    path = tmp_path / "net"
    save_sparse(path, pruned())
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(data))
        with pytest.raises(ArtifactError):
            load_sparse(path)
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ArtifactError, match="truncated"):
        load_sparse(path)


@pytest.mark.parametrize("forge", [{"kind": "magic"}, {"block": 7}, {"shape": [2**40, 64, 3, 3]}, {"shape": [64, 64, 3]}, {"shape": "x"}, {"columns": True}])
def test_forged_forms_are_refused(tmp_path, forge):
    how, values, index = encode(zeros((64, 64, 3, 3), 0.9, 0))
    with pytest.raises(ArtifactError, match="malformed sparse tensor"):
        decode(how | forge, values, index)
    with pytest.raises(ArtifactError):
        decode(how, values[:-1], index)
    with pytest.raises(ArtifactError):
        decode(how, values, None)


def test_other_files_are_refused(tmp_path):
    save(tmp_path / "net", {"a": torch.zeros(1)}, {"kind": "weights"})
    with pytest.raises(ArtifactError, match="no sparse network"):
        load_sparse(tmp_path / "net")
