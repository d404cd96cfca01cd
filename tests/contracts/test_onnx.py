"""ONNX files: what runs elsewhere answers as the model does, what ONNX cannot say is refused with the reason, and nothing half written stays."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from wirings import hugging_face

import workbench
from workbench.benches import vision
from workbench.contracts.files import onnx

ELSEWHERE = """
import sys, json
import numpy as np, onnxruntime
missing = []
for name in ("torch", "workbench"):
    try:
        __import__(name)
    except ImportError:
        missing.append(name)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
x = np.load(sys.argv[2])
np.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: x})[0])
print(json.dumps(missing))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A place for a bare interpreter in which there is onnxruntime and what it needs, and nothing else."""
    folder, packages = tmp_path_factory.mktemp("elsewhere"), Path(sysconfig.get_path("purelib"))
    for name in ("onnxruntime", "numpy", "numpy.libs", "flatbuffers", "google", "packaging", "typing_extensions.py"):
        if (packages / name).exists():
            (folder / name).symlink_to(packages / name)
    return folder


@pytest.mark.parametrize("net", ["vgg-small", "resnet20", "ViT of transformers"])
def test_runs_where_neither_torch_nor_the_workbench_is(net, elsewhere, tmp_path):
    images = vision.calibration()[:8]
    model = hugging_face("vit") if net == "ViT of transformers" else vision.dense(net)
    found = workbench.compress(model, "fscl", 0.2, example=images, probe=None)
    assert found.export(tmp_path / "net.onnx") == (tmp_path / "net.onnx").stat().st_size
    more = torch.cat([images, images.flip(0)])  # another batch than the example's
    np.save(tmp_path / "x.npy", more.numpy())
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(elsewhere)!r})\n{ELSEWHERE}"]
    done = subprocess.run([*command, tmp_path / "net.onnx", tmp_path / "x.npy", tmp_path / "y.npy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["torch", "workbench"], "the point is that they are not there"
    with torch.no_grad():
        out = found.model.eval()(more)
    want = (out.logits if hasattr(out, "logits") else out).numpy()
    assert np.abs(np.load(tmp_path / "y.npy") - want).max() <= 1e-4 * max(1, np.abs(want).max())


class ByData(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class Bessel(ByData):
    def forward(self, x):
        return torch.special.bessel_j0(self.layer(x))


@pytest.mark.parametrize(("model", "says"), [(ByData(), "data-dependent"), (Bessel(), "bessel_j0")])
def test_what_onnx_cannot_say_is_refused_with_the_reason(model, says, tmp_path, capfd):
    with pytest.raises(ValueError, match=f"model: it cannot be written as ONNX: .*{says}"):
        onnx.export(tmp_path / "net.onnx", model, torch.ones(2, 4))
    assert not list(tmp_path.iterdir())
    assert "def forward" not in "".join(capfd.readouterr()), "a reason is one line, not the exporter's pages"


def test_a_file_that_answers_otherwise_is_not_written(tmp_path, monkeypatch):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    right = onnx.forward
    monkeypatch.setattr(onnx, "forward", lambda net, x: right(net, x) + 0.01)
    (tmp_path / "net.onnx").write_bytes(b"mine")
    with pytest.raises(ValueError, match="its outputs differ by 1.*nothing was written"):
        onnx.export(tmp_path / "net.onnx", model, torch.randn(2, 4))
    assert (tmp_path / "net.onnx").read_bytes() == b"mine"
    with pytest.raises(ValueError, match=r"path: it must end in \.onnx"):
        onnx.export(tmp_path / "net.pt", model, torch.randn(2, 4))
