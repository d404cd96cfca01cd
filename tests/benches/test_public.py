"""The public nets: their layers, and with the public tier at hand their published accuracies; damaged files say what they are."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from workbench.benches import public
from workbench.benches.public import data
from workbench.benches.public.nets import CifarResNet, Separable, TinyResNet, as_published, ds_cnn, from_keras, mobilenet, same
from workbench.contracts.model import load as load_model
from workbench.contracts.model import save_model
from workbench.contracts.structure.surgery import channel_groups, macs, remove
from workbench.core import datasets
from workbench.core.study import StudyError
from workbench.papers.pruning import inside_blocks

# what the published files hold (numbers, running statistics among them), and millions of multiply-accumulates
SHAPES = {"CIFAR ResNet-20": (lambda: CifarResNet.of_depth(3), (3, 32, 32), 271098, 40.55), "ResNet-8": (TinyResNet, (3, 32, 32), 78666, 12.5),
          "MobileNet": (mobilenet, (3, 96, 96), 221794, 7.49), "DS-CNN": (ds_cnn, (1, 49, 10), 24908, 2.66)}


def at_hand(name: str) -> None:
    try:
        here = public.here(name)
    except datasets.DataError as error:
        pytest.fail(str(error))
    if not here:
        pytest.skip(f"NO PUBLIC TIER for {name} (set WORKBENCH_MIRROR, or run `workbench data get`): its accuracy was NOT checked")


@pytest.mark.parametrize("name", public.NETS)
def test_every_net_reaches_its_reference(name):
    at_hand(name)
    model = public.load(name)
    for which, percent in public.net(name).reference.items():
        assert round(100 * float(public.right(model, name, which).mean()), 1) == pytest.approx(percent, abs=0.051), which


@pytest.mark.parametrize("name", public.NETS)
def test_calibration_and_test_items_are_apart(name):
    at_hand(name)
    seen = {item.numpy().tobytes() for item in public.split(name, "calibration").items}
    assert len(seen) >= 20
    for which in public.net(name).tests:
        assert not seen & {item.numpy().tobytes() for item in public.split(name, which).items}, which


def test_jpeg_copies_are_not_the_true_pixels():
    at_hand("tiny-resnet8")
    splits = data.cifar()
    assert (len(splits["true"]), len(splits["easy"]), len(splits["jpeg"])) == (199, 100, 500) and splits["jpeg"].labels.bincount().tolist() == [50] * 10
    model = public.load("cifar-resnet20")
    assert public.right(model, "cifar-resnet20", "true").mean() > public.right(model, "cifar-resnet20", "jpeg").mean() + 0.05


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_costs_and_real_surgery(name, tmp_path):
    make, shape, count, mega = SHAPES[name]
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(2, *shape)
    assert sum(v.numel() for v in model.state_dict().values() if v.is_floating_point()) == count
    assert macs(model, example) / 1e6 == pytest.approx(mega, abs=0.01)
    groups = inside_blocks(channel_groups(model, example))
    small = remove(model, {group.name: torch.arange(group.size // 2) for group in groups}, example, groups)
    assert macs(small, example) < 0.6 * macs(model, example)
    save_model(tmp_path / "small.wb", small, example)
    assert torch.equal(load_model(tmp_path / "small.wb")(example), small(example))
    assert type(small)(**small.config()).eval()(example).shape == small(example).shape


@pytest.mark.parametrize("size, kernel, stride", [((32, 32), (3, 3), 1), ((32, 32), (3, 3), 2), ((32, 32), (1, 1), 2), ((49, 10), (10, 4), 2), ((25, 5), (3, 3), 1),
                                                  ((7, 9), (4, 3), 3)])
def test_same_padding_gives_ceil_outputs_and_puts_the_odd_row_behind(size, kernel, stride):
    left, right, top, bottom = same(size, kernel, stride)
    assert 0 <= right - left <= 1 and 0 <= bottom - top <= 1
    for side, k, before, after in ((size[0], kernel[0], top, bottom), (size[1], kernel[1], left, right)):
        assert (side + before + after - k) // stride + 1 == -(-side // stride)


def test_keras_kernels_are_turned_into_torch_s_order():
    """A net whose only weight that is not zero is known, at a lopsided padding: the answer is worked out by hand."""
    net = Separable((4, 4), 1, (3, 3), 2, (2, 2), (1,), 2).eval()
    tensors = {"conv2d/kernel": torch.zeros(3, 3, 1, 2), "depthwise_conv2d/depthwise_kernel": torch.zeros(3, 3, 2, 1), "conv2d_1/kernel": torch.zeros(1, 1, 2, 2),
               "dense/kernel": torch.eye(2)} | {f"{name}/bias": torch.zeros(2) for name in ("conv2d", "depthwise_conv2d", "conv2d_1", "dense")}
    tensors["conv2d/kernel"][2, 0, 0, 0] = 1.0  # reads two rows below, the same column: at stride 2 on four rows "same" pads behind only
    tensors["depthwise_conv2d/depthwise_kernel"][1, 1, 0, 0] = 1.0
    tensors["conv2d_1/kernel"][0, 0, 0] = torch.tensor([1.0, 2.0])
    for name in ("batch_normalization", "batch_normalization_1", "batch_normalization_2"):
        tensors |= {f"{name}/{key}": torch.full((2,), value) for key, value in (("gamma", 1.0), ("beta", 0.0), ("moving_mean", 0.0), ("moving_variance", 0.999))}
    from_keras(net, tensors, public._interleaved("cb" "wbcb" "d"))
    x = torch.arange(16.0).view(1, 1, 4, 4)
    mean = (x[0, 0, 2, 0] + x[0, 0, 2, 2]) / 4  # rows 2 and 4 of the columns 0 and 2; row 4 is padding
    torch.testing.assert_close(net(x), torch.stack([mean, 2 * mean])[None])


def test_weights_that_do_not_fit_are_refused(tmp_path):
    net = public.NETS["tiny-dscnn"]
    with pytest.raises(ValueError, match="layers for the"):
        from_keras(ds_cnn(), {"layer_with_weights-0/kernel": torch.zeros(1)}, lambda names: names)
    with pytest.raises(ValueError, match="missing or unexpected"):
        public.NETS["tiny-resnet8"].build({"conv2d/kernel": torch.zeros(1)})
    with pytest.raises(ValueError, match="do not fit CifarResNet"):
        as_published(CifarResNet.of_depth(3), {"conv1.weight": torch.zeros(16, 3, 3, 3)})
    save_file({"layer_with_weights-0/kernel": torch.zeros(3, 3, 1, 8)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(np.random.default_rng(0).bytes(500))
    for name in ("other", "broken", "missing"):
        with pytest.raises(datasets.DataError, match="does not hold mlperf-kws-dscnn"):
            public.read_weights(net, tmp_path / f"{name}.safetensors")


def test_damaged_and_missing_data_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_MIRROR", str(tmp_path))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    assert not any(public.here(name) for name in public.NETS)
    with pytest.raises(datasets.DataError, match="WORKBENCH_MIRROR"):
        data.arrays("mlperf-kws-stimuli", "x")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mlperf_kws_mfcc.npz").write_bytes(b"not what it was")
    with pytest.raises(datasets.DataError, match="damaged"):
        data.arrays("mlperf-kws-stimuli", "x")
    with pytest.raises(StudyError, match="no public net 'resnet'; there are cifar-resnet20"):
        public.load("resnet")


def archive(path, entries):
    with tarfile.open(path, "w:xz") as tar:
        for name, content in entries:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def picture(side=32, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 77, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def test_the_archive_of_pictures_is_read_in_order_and_refused_when_damaged(tmp_path):
    names = [f"test/{name}/0000.jpg" for name in data.CLASSES]
    archive(tmp_path / "good.tar.xz", [(name, picture()) for name in reversed(names)] + [("train/airplane/0000.jpg", b"nonsense")])
    good = data.read_jpegs(tmp_path / "good.tar.xz", 1)
    assert good.items.shape == (10, 3, 32, 32) and good.labels.tolist() == list(range(10))
    archive(tmp_path / "few.tar.xz", [(name, picture()) for name in names[:9]])
    archive(tmp_path / "wide.tar.xz", [(name, picture(33)) for name in names])
    archive(tmp_path / "noise.tar.xz", [(name, b"\xff\xd8 no picture") for name in names])
    (tmp_path / "cut.tar.xz").write_bytes((tmp_path / "good.tar.xz").read_bytes()[:200])
    for name, message in (("few", "9 of 10"), ("wide", "10 of 10"), ("noise", "no archive of JPEG"), ("cut", "no archive of JPEG"), ("nowhere", "no archive")):
        with pytest.raises(datasets.DataError, match=message):
            data.read_jpegs(tmp_path / f"{name}.tar.xz", 1)
