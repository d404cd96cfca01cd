"""Four public network shapes in torch, and how their published weights are put into them.

| net | shape | parameters | MMAC |
|---|---|---|---|
| CIFAR ResNet-20, 32, 56 | He et al. 2015, section 4.2; shortcuts without weights (every second pixel, zeros for the new channels) | 270–853 k | 41–126 |
| MLPerf Tiny ResNet-8 | three blocks, strided 1×1 shortcuts without batch norm | 78 k | 12.5 |
| MLPerf Tiny MobileNetV1-0.25 | Howard et al. 2017, a quarter of the channels, 96×96 | 216 k | 7.5 |
| MLPerf Tiny DS-CNN | Zhang et al. 2017 (Hello Edge), 49×10 coefficients | 24 k | 2.7 |

The last three come from TensorFlow: height × width × channels there, channels first here; its "same" padding puts the odd row *behind* the image
(stride 2 on an even side: 0 before, 1 after), which torch's symmetric padding cannot, so a :class:`torch.nn.ZeroPad2d` stands before the convolution. The
nets return logits; the softmax behind them changes no answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERAS_EPSILON = 1e-3


# --- CIFAR ResNets (parameters named as in the published files) --------------------------------------------------------------------------------


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without weights; (N, c_in, H, W) → (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, inner: int, c_out: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        self.stride, self.more = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """``inner[i]``: channels inside block i; the three stages carry 16, 32 and 64. (N, 3, 32, 32) → (N, 10)."""

    STAGES = (16, 32, 64)

    def __init__(self, inner):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        depth, c_in = len(inner) // 3, 16
        for stage, width in enumerate(self.STAGES):
            blocks = []
            for i in range(depth):
                blocks.append(Block(c_in, inner[stage * depth + i], width, 2 if stage and not i else 1))
                c_in = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    @classmethod
    def of_depth(cls, blocks: int) -> CifarResNet:
        """The published net with ``blocks`` blocks a stage (3: ResNet-20)."""
        return cls([width for width in cls.STAGES for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))).mean((2, 3)))

    def config(self) -> dict:
        return {"inner": [block.conv1.out_channels for stage in (self.layer1, self.layer2, self.layer3) for block in stage]}


# --- TensorFlow's nets -------------------------------------------------------------------------------------------------------------------------


def same(size: tuple[int, int], kernel: tuple[int, int], stride: int) -> tuple[int, int, int, int]:
    """TensorFlow's "same" padding of a (height, width) as (left, right, top, bottom): ceil(size/stride) outputs, the odd row or column behind."""
    pads = [max((-(-side // stride) - 1) * stride + k - side, 0) for side, k in zip(size, kernel, strict=True)]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in pads)
    return left, right, top, bottom


def convolution(size, c_in: int, c_out: int, kernel=(3, 3), stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution with bias under "same" padding; where that is lopsided, a ZeroPad2d before it."""
    left, right, top, bottom = same(size, kernel, stride)
    if (left, top) == (right, bottom):
        return [nn.Conv2d(c_in, c_out, kernel, stride, (top, left), groups=groups)]
    return [nn.ZeroPad2d((left, right, top, bottom)), nn.Conv2d(c_in, c_out, kernel, stride, groups=groups)]


def normed(*args, **kwargs) -> list[nn.Module]:
    layers = convolution(*args, **kwargs)
    return [*layers, nn.BatchNorm2d(layers[-1].out_channels, KERAS_EPSILON)]


def smaller(size, stride: int) -> tuple[int, int]:
    return tuple(-(-side // stride) for side in size)


class TinyBlock(nn.Module):
    """Two 3×3 convolutions; where the shape changes, a strided 1×1 convolution without batch norm on the shortcut."""

    def __init__(self, size, c_in: int, inner: int, c_out: int, stride: int):
        super().__init__()
        self.main = nn.Sequential(*normed(size, c_in, inner, stride=stride), nn.ReLU(), *normed(smaller(size, stride), inner, c_out))
        self.shortcut = nn.Sequential(*convolution(size, c_in, c_out, (1, 1), stride)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


class TinyResNet(nn.Module):
    """MLPerf Tiny's image classifier. (N, 3, 32, 32), values 0…255 → (N, 10)."""

    def __init__(self, inner=(16, 32, 64)):
        super().__init__()
        self.stem = nn.Sequential(*normed((32, 32), 3, 16), nn.ReLU())
        self.blocks = nn.Sequential(TinyBlock((32, 32), 16, inner[0], 16, 1), TinyBlock((32, 32), 16, inner[1], 32, 2), TinyBlock((16, 16), 32, inner[2], 64, 2))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((2, 3)))

    def config(self) -> dict:
        return {"inner": [next(m for m in block.main if isinstance(m, nn.Conv2d)).out_channels for block in self.blocks]}


class Separable(nn.Module):
    """A stem and depthwise-separable blocks, global average, linear: the shape of MobileNetV1 and DS-CNN. ``size``: (height, width) of the input."""

    def __init__(self, size, channels: int, kernel, stem_stride: int, widths, strides, classes: int):
        super().__init__()
        self.plan = {"size": list(size), "channels": channels, "kernel": list(kernel), "stem_stride": stem_stride, "strides": list(strides), "classes": classes}
        layers, size = [nn.Sequential(*normed(size, channels, widths[0], kernel, stem_stride), nn.ReLU())], smaller(size, stem_stride)
        for c_in, c_out, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            layers.append(nn.Sequential(*normed(size, c_in, c_in, stride=stride, groups=c_in), nn.ReLU(), *normed(smaller(size, stride), c_in, c_out, (1, 1)),
                                        nn.ReLU()))
            size = smaller(size, stride)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))

    def config(self) -> dict:
        return {**self.plan, "widths": [[m for m in block if isinstance(m, nn.Conv2d)][-1].out_channels for block in self.features]}


def mobilenet() -> Separable:
    """MobileNetV1 at a quarter of its channels. (N, 3, 96, 96), values 0…1 → (N, 2): no person, person."""
    return Separable((96, 96), 3, (3, 3), 2, (8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256), (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), 2)


def ds_cnn() -> Separable:
    """DS-CNN (small). (N, 1, 49, 10) cepstral coefficients → (N, 12) keywords."""
    return Separable((49, 10), 1, (10, 4), 2, (64,) * 5, (1,) * 4, 12)


# --- weights -----------------------------------------------------------------------------------------------------------------------------------


def as_published(net: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """``net`` with weights of the same names (the CIFAR ResNets). ValueError: other names or shapes."""
    state = {**{name: value for name, value in net.state_dict().items() if name.endswith("num_batches_tracked")}, **tensors}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"tensors: they do not fit {type(net).__name__}: {' '.join(str(error).split())[:300]}") from None
    return net


def from_keras(net: nn.Module, tensors: Mapping[str, Tensor], order: Callable[[list[str]], list[str]]) -> nn.Module:
    """``net`` with weights of a Keras file: ``<layer>/<weight>``, kernels (height, width, in, out). ``order`` sorts the layer names into the order in which
    the net's own layers stand. ValueError: another number of layers, or a shape that does not fit."""
    layers: OrderedDict[str, dict[str, Tensor]] = OrderedDict((name, {}) for name in order(sorted({key.partition("/")[0] for key in tensors})))
    for key, value in tensors.items():
        layers[key.partition("/")[0]][key.partition("/")[2]] = value
    modules = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    if len(modules) != len(layers):
        raise ValueError(f"tensors: {len(layers)} layers for the {len(modules)} of {type(net).__name__}")
    for module, (name, found) in zip(modules, layers.items(), strict=True):
        for target, value in _in_torch(module, found).items():
            if (place := getattr(module, target)).shape != value.shape:
                raise ValueError(f"tensors: {name!r} holds {tuple(value.shape)} where {type(module).__name__}.{target} has {tuple(place.shape)}")
            with torch.no_grad():
                place.copy_(value)
    return net


def _in_torch(module: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        if isinstance(module, nn.BatchNorm2d):
            return {"weight": found["gamma"], "bias": found["beta"], "running_mean": found["moving_mean"], "running_var": found["moving_variance"]}
        if isinstance(module, nn.Linear):
            return {"weight": found["kernel"].T, "bias": found["bias"]}
        kernel = found["depthwise_kernel"].permute(2, 3, 0, 1) if module.groups > 1 else found["kernel"].permute(3, 2, 0, 1)
        return {"weight": kernel, "bias": found["bias"]}
    except KeyError as missing:
        raise ValueError(f"tensors: no {missing} for a {type(module).__name__}; found {', '.join(found)}") from None
