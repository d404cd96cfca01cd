"""BSGC beyond what the common matrix tests: the bench's boxes and readers, the method on networks of one's own, wrong input."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import workbench
from workbench.benches import detection
from workbench.benches.detection import boxes, data, tracking
from workbench.contracts.structure.macs import macs, parameters
from workbench.papers.pruning._bsgc_shrink import alive, prunable, shrink, strength, take_out
from workbench.papers.pruning._bsgc_tracker import ONLINE
from workbench.papers.pruning.bsgc import BSGC, STUDY, Classification, Detection, OnlineTracker, report, specialize, stored

FEW = BSGC(steps=8, every=2, rate=0.02)


def grid(*rows):
    return np.array(rows, np.float32).reshape(-1, 4)


# --- boxes --------------------------------------------------------------------------------------------------------------------------------------

def test_overlap_by_hand():
    shared = boxes.overlap(grid([0, 0, 4, 4]), grid([2, 0, 6, 4], [0, 0, 4, 4], [5, 5, 6, 6], [3, 3, 3, 3]))
    assert np.allclose(shared, [[8 / 24, 1, 0, 0]])


def test_suppression_keeps_the_better_of_two_and_what_lies_apart():
    kept = boxes.suppress(grid([0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]), np.array([0.6, 0.9, 0.3]))
    assert kept.tolist() == [1, 2]


def test_average_precision_by_hand():
    truth = boxes.Boxes(np.array([0, 0, 1]), grid([0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]), np.array([3, 3, 3]))
    #       right; a second one on the same object; on nothing; right          → precision 1, 1/2, 1/3, 2/4 → made falling 1, ½, ½, ½ → AP (1 + ½) / 3
    found = boxes.Found(np.array([0, 0, 1, 1]), grid([0, 0, 10, 9], [0, 1, 10, 10], [40, 40, 50, 50], [0, 0, 10, 10]), np.array([3, 3, 3, 3]),
                        np.array([0.9, 0.8, 0.7, 0.6]))
    assert boxes.average_precision(found, truth) == pytest.approx(50.0)
    assert boxes.hit(found, truth).tolist() == [True, False, True]
    wrong_digit = replace(found, label=np.array([8, 8, 8, 8]))
    assert boxes.average_precision(wrong_digit, truth) == 0 and not boxes.hit(wrong_digit, truth).any()


def test_targets_decode_to_the_boxes():
    scene = data.early(40)
    labels, offsets = boxes.targets(scene.objects, len(scene), 8)
    outputs = torch.zeros(len(scene), 15, 8, 8)
    outputs[:, :11] = 20 * nn.functional.one_hot(labels, 11).movedim(-1, 1).float()
    outputs[:, 11:] = offsets
    assert boxes.average_precision(boxes.decode(outputs), scene.objects) == pytest.approx(100)


def test_nothing_on_an_image_is_no_error():
    nothing = boxes.Boxes(np.empty(0, np.int64), grid(), np.empty(0, np.int64))
    outputs = torch.zeros(1, 15, 8, 8, requires_grad=True)
    labels, offsets = boxes.targets(nothing, 1, 8)
    assert torch.isfinite(boxes.loss(outputs, labels, offsets))
    sure_of_nothing = outputs.detach().clone()
    sure_of_nothing[:, boxes.CLASSES] = 50
    assert len(boxes.decode(sure_of_nothing).score) == 0


# --- frames in time -----------------------------------------------------------------------------------------------------------------------------

def test_stream_refuses_what_has_not_come():
    stream = data.Stream(np.zeros((4, 3, 8, 8), np.uint8))
    assert stream[0].shape == (3, 8, 8)
    with pytest.raises(data.LookAhead, match="frame 1 .* frame 0"):
        stream[1]
    with pytest.raises(data.LookAhead):
        stream[-1]
    assert len(list(stream)) == 4 and stream.now == 3 and stream[1] is not None


def test_early_frames_end_at_the_split():
    assert len(data.early()) == data.SPLIT < data.JUDGED and len(data.late()) == data.FRAMES - data.JUDGED
    with pytest.raises(data.LookAhead):
        data.early(data.SPLIT + 1)


def test_the_camera_is_the_same_everywhere():
    assert data.fingerprint(data._arrays(data._make_camera())) == data.EXPECTED["camera"]


def test_digits_of_the_two_periods_differ():
    assert not set(data._of("train", data.CAMERA_DIGITS)) & set(data._of("test", data.CAMERA_DIGITS))
    assert set(np.unique(data.late().objects.label)) == set(data.CAMERA_DIGITS)


# --- the method on one's own networks ------------------------------------------------------------------------------------------------------------

def classifier(norm=True):
    torch.manual_seed(0)
    def stage(c_in, c_out):
        return [nn.Conv2d(c_in, c_out, 3, padding=1), *([nn.BatchNorm2d(c_out)] if norm else []), nn.ReLU()]
    return nn.Sequential(*stage(3, 12), *stage(12, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def images(n=16, seed=0):
    return torch.randn(n, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


def test_specialize_meets_the_size_and_saves(tmp_path):
    net = classifier()
    spec = specialize(net, [(images(), torch.arange(16) % 4)], [images(seed=1)], size=0.3, method=FEW)
    before, after = spec.report["parameters"]
    assert (before, after) == (parameters(net), parameters(spec.model)) and after <= 0.3 * before
    assert len(spec.history["size"]) == FEW.steps and spec.history["size"][-1] == after
    assert spec.save(tmp_path / "small.wb") == (tmp_path / "small.wb").stat().st_size
    again = workbench.load(tmp_path / "small.wb")
    with torch.no_grad():
        assert torch.equal(again(images()), spec.model(images()))


def test_the_model_handed_in_stays_as_it_was():
    net = classifier()
    before = copy.deepcopy(net.state_dict())
    specialize(net, [(images(), torch.arange(16) % 4)], [images(seed=1)], size=0.5, method=FEW)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_macs_as_currency():
    net = classifier()
    spec = specialize(net, [images()], [images(seed=1)], size=0.4, method=replace(FEW, currency="macs"))
    assert macs(spec.model, images()) <= 0.4 * macs(net, images())


def test_without_batch_norm_filters_shrink_and_it_is_said():
    with pytest.warns(UserWarning, match="no batch norm"):
        spec = specialize(classifier(norm=False), [(images(), torch.arange(16) % 4)], [images(seed=1)], size=0.4, method=FEW)
    assert spec.report["parameters"][1] <= 0.4 * spec.report["parameters"][0]
    assert spec.report["border jump"] == 0  # a filter of zeros sends zeros


def test_filters_reach_zero_exactly():
    net = classifier(norm=False)
    groups = prunable(net, images())
    short = {group.name: strength(group) <= 1 for group in groups}  # below the layer's mean length
    shrink(groups, dict.fromkeys(short, 1.0))
    for group in groups:
        assert torch.equal(strength(group) == 0, short[group.name]) and torch.equal(alive([group])[group.name], ~short[group.name])
        assert not net[int(group.name)].bias[short[group.name]].any()


def test_a_layer_keeps_its_strongest_channel():
    net = classifier()
    with torch.no_grad():
        net[1].weight.zero_()
    assert int(alive(prunable(net, images()))["0"].sum()) == 1


def test_constants_go_into_a_bias_where_no_norm_follows():
    net = classifier()
    with torch.no_grad():
        net[4].weight[3], net[4].bias[3] = 0, 0.7
        small, jump = take_out(net, {"3": torch.tensor([3])}, images())
        assert torch.allclose(small(images()), net(images()), atol=1e-5) and jump == 0  # the linear layer has no border


def test_a_large_jump_at_a_border_is_put_off():
    net = classifier()
    with torch.no_grad():
        net[1].weight[3], net[1].bias[3] = 0, 50.0
    small, jump = take_out(net, {"0": torch.tensor([3])}, images(), outgoing=1.0)
    assert small[0].out_channels == 12 and jump == 0
    small, jump = take_out(net, {"0": torch.tensor([3])}, images())
    assert small[0].out_channels == 11 and jump > 1


def test_a_channel_that_a_second_norm_still_sends_is_not_taken_for_a_constant():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.one, self.other, self.left, self.right = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x):
            h = self.conv(x)
            return (self.left(self.one(h).relu()) + self.right(self.other(h).relu())).mean((2, 3))

    torch.manual_seed(0)
    net = Two().eval()
    with torch.no_grad():
        net.one.weight[2] = 0
    small, jump = take_out(net, {"conv": torch.tensor([2])}, images(), outgoing=1e-3)
    assert small.conv.out_channels == 6 and jump == 0
    assert take_out(net, {"conv": torch.tensor([2])}, images())[1] > 1e-3


def test_depthwise_padding_counts_as_a_border():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        net[1].weight[3], net[1].bias[3], net[3].weight[3] = 0, 2.0, 0.1
        small, jump = take_out(net, {"0": torch.tensor([3])}, images())
        change = (small(images()) - net(images())).abs()
    assert float(change[:, :, 1:-1, 1:-1].max()) < 1e-5 and 0 < float(change.max()) <= jump + 1e-5


def test_unlabelled_frames_are_labelled_by_the_teacher():
    answers = torch.tensor([[5.0, 0, 0, 0], [0.1, 0, 0, 0]])
    assert Classification().label(answers)[0].tolist() == [0, -1]
    net, frames = detection.dense("detector"), data.normalised(data.early(8).images)
    labels, offsets = Detection().label(net(frames).detach())
    assert labels.shape == (8, 8, 8) and offsets.shape == (8, 4, 8, 8) and (labels < 10).any()


def test_compress_through_the_model_contract():
    made = workbench.compress(classifier(), replace(FEW, steps=6), ratio=0.5, data=[(images(), torch.arange(16) % 4)], probe=None)
    assert made.report.parameters[1] <= 0.5 * made.report.parameters[0]
    assert STUDY.method == BSGC()


# --- the tracker --------------------------------------------------------------------------------------------------------------------------------

ON = replace(ONLINE, steps=4, every=2)


def test_tracker_shrinks_and_reports():
    frames, truth = data.videos()
    follower = OnlineTracker(detection.dense("siamese"), stored(), size=0.7, method=ON)
    track = follower.run(frames[2, :6], truth[2, 0])
    told = report(follower)
    assert track.shape == (6, 4) and np.isfinite(track).all()
    assert told["macs"][1] <= 0.7 * told["macs"][0] and (follower.restored_at >= 0) == (told["macs"][1] == told["macs"][0])
    assert len(follower.history["confidence"]) == 5


def test_learning_that_goes_astray_ends_with_the_uncompressed_weights():
    frames, truth = data.videos()
    follower = OnlineTracker(detection.dense("siamese"), stored(), method=replace(ON, rate=1e6, clip=1e9))
    follower.run(frames[2, :3], truth[2, 0])
    assert follower.restored_at >= 0 and follower.net is follower.whole


def test_tracker_without_compression_keeps_its_size():
    frames, truth = data.videos()
    follower = OnlineTracker(detection.dense("siamese"), stored(), compress=False, method=ON)
    follower.run(frames[2, :3], truth[2, 0])
    assert parameters(follower.net) == parameters(follower.whole)
    assert not torch.equal(follower.net.features[0].weight, follower.whole.features[0].weight)


def test_success_of_a_perfect_and_of_a_lost_track():
    assert tracking.success(np.ones(5)) == pytest.approx(100 * 20 / 21) and tracking.success(np.zeros(5)) == 0
    assert tracking.precise(grid([0, 0, 4, 4]), grid([3, 4, 7, 8])) == 100 and tracking.precise(grid([0, 0, 4, 4]), grid([4, 4, 8, 8])) == 0


# --- wrong input --------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("wrong", "says"), [
    ({"general": None}, "general: with alpha = 1.0"), ({"size": 0}, r"size: .*\(0, 1\]"), ({"size": 0.001}, "one channel left"),
    ({"domain": []}, "domain: the loader yields no batch"), ({"general": []}, "general: the loader yields no batch"),
    ({"domain": [(torch.full((4, 3, 10, 10), float("nan")), torch.zeros(4, dtype=torch.long))]}, "the loss is nan")])
def test_wrong_arguments_are_named(wrong, says):
    given = {"domain": [(images(), torch.arange(16) % 4)], "general": [images(seed=1)], "size": 0.5} | wrong
    with pytest.raises(ValueError, match=says):
        specialize(classifier(), given.pop("domain"), given.pop("general"), **given, method=FEW)


def test_alpha_zero_needs_no_general_data():
    assert specialize(classifier(), [(images(), torch.arange(16) % 4)], alpha=0, size=0.5, method=FEW).report["parameters"][1] > 0


@pytest.mark.parametrize(("wrong", "says"), [({"alpha": -1.0}, "alpha"), ({"steps": 0}, "steps"), ({"growth": 1.0}, "growth"), ({"currency": "bytes"}, "parameters or macs")])
def test_wrong_settings_say_what_is_allowed(wrong, says):
    with pytest.raises(ValueError, match=says):
        BSGC(**wrong)


@pytest.mark.parametrize("box", [[-5, 0, 10, 10], [10, 10, 10, 20], [60, 60, 90, 90], [1, 2, 3]])
def test_a_first_box_outside_of_the_frame(box):
    with pytest.raises(ValueError, match="box0: .* 80 wide and 80 high"):
        OnlineTracker(detection.dense("siamese"), stored(), method=ON).run(data.videos()[0][0, :2], box)


def test_tracker_needs_general_crops():
    with pytest.raises(ValueError, match="general: with alpha"):
        OnlineTracker(detection.dense("siamese"))
