"""A small multi-scale normalising flow over photographs, in float32, and its training recipe.

    python -m workbench.benches.photo_flow 0            (about three minutes on one slow core)

The flow is made of layers each of which a codec can make exactly invertible:

    colours, noise ─┬─ squeeze 2×2 ─ six Couplings ─┬─ 9 channels ─ Conv1x1 ─ MixtureCDF ─ uniform
                    └────── 3 channels, half as large ◄┘     (repeated `levels` times; the rest: ActNorm, MixtureCDF)

One pixel ``a`` of each 2×2 cell goes on to the coarser level; the other three (``b1`` diagonal, ``b2`` right, ``b3`` below) are
predicted, luma before colour differences, from ``a`` and from those already known, whose dequantisation noise the networks do not
see. The finest level has its own weights; all coarser levels share theirs, because photographs look alike at every scale.
Tensors are float32 (N, C, H, W), in pixel units.

Training: Adam, one-cycle learning rate up to 3e-3 (five times that for the output layers and the priors), batch 12, uniform
dequantisation noise, mirrored patches; loss in bits per dimension.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import photos

PIXEL_UNIT = 16.0       # networks see pixels / 16, so that hidden values stay near one
LATENT_SPREAD = 4.0     # a normalised residual has a standard deviation of about four pixel units
LOG2_SCALE = 4.0        # scales lie in 2^±4
CELL = ((0, 0), (1, 1), (0, 1), (1, 0))     # a, b1, b2, b3 in a 2×2 cell
#  pieces of the latent line, in eighths of its spread: 1 wide to ±4 spreads, 4 wide to ±8, then doubling to ±2^14
_RIGHT = (*range(33), *range(36, 65, 4), *(1 << i for i in range(7, 18)))
KNOTS = tuple(-k for k in _RIGHT[:0:-1]) + _RIGHT
GROUPS = ((3,), (4, 5), (6,), (7, 8), (9,), (10, 11))


class Conv1x1(nn.Module):
    """``W = P·L·Λ·U`` over the channels: P a permutation, L and U unit triangular, Λ positive. ``x`` (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("permutation", torch.arange(channels).flip(0))
        self.lower, self.upper = (nn.Parameter(torch.zeros(channels, channels)) for _ in range(2))
        self.log2_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        eye = torch.eye(len(self.lower))
        weight = (eye + self.lower.tril(-1)) @ torch.diag(self.log2_scale.exp2()) @ (eye + self.upper.triu(1))
        y = torch.einsum("ij,njhw->nihw", weight[self.permutation], x)
        return y, self.log2_scale.sum() * x[0, 0].numel()


class ActNorm(nn.Module):
    """``(x − shift) · 2^log2_scale`` per channel."""

    def __init__(self, shift, scale):
        super().__init__()
        self.shift, self.log2_scale = nn.Parameter(torch.tensor(shift)), nn.Parameter(torch.tensor(scale).log2())

    def forward(self, x):
        y = (x - self.shift[:, None, None]) * self.log2_scale.exp2()[:, None, None]
        return y, self.log2_scale.sum() * x[0, 0].numel()


class ContextNet(nn.Module):
    """Known channels (N, given, H, W) → predictions in pixel units and log2 scales, each (N, changed, H, W)."""

    def __init__(self, given: int, changed: int, width: int = 32):
        super().__init__()
        self.first = nn.Conv2d(given, width, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate")
        self.last = nn.Conv2d(width, 2 * changed, 1)
        self.linear = nn.Conv2d(given, changed, 3, padding=1, padding_mode="replicate", bias=False)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        nn.init.zeros_(self.linear.weight)

    def forward(self, known):
        known = known / PIXEL_UNIT
        hidden = self.second(self.first(known).relu()).relu()
        shift, log2_scale = self.last(hidden).chunk(2, 1)
        return PIXEL_UNIT * (shift + self.linear(known)), log2_scale.clamp(-LOG2_SCALE, LOG2_SCALE)


class Coupling(nn.Module):
    """``z_b = (x_b − t) · 2^s`` with ``t, s = net(⌊x_a⌋)``; ``changed`` = b, every channel before it = a."""

    def __init__(self, changed: tuple[int, ...], width: int = 32):
        super().__init__()
        self.changed, self.given = changed, changed[0]
        self.net = ContextNet(self.given, len(changed), width)

    def forward(self, x):
        shift, log2_scale = self.net(x[:, :self.given].floor())
        y = x.clone()
        y[:, list(self.changed)] = (x[:, list(self.changed)] - shift) * log2_scale.exp2()
        return y, log2_scale.sum((1, 2, 3))


class MixtureCDF(nn.Module):
    """Element-wise ``F(z)``, a mixture of logistics per channel; ``forward`` gives its log2 density instead of a Jacobian."""

    def __init__(self, channels: int, components: int = 6):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, components))
        self.mean = nn.Parameter(torch.linspace(-1, 1, components).repeat(channels, 1))
        self.log_scale = nn.Parameter(torch.linspace(-1.2, 0.6, components).repeat(channels, 1))
        self.register_buffer("table", torch.zeros(channels, len(KNOTS) - 1, dtype=torch.int32))

    @torch.no_grad()
    def freeze(self) -> None:
        """Rounds F to integers that sum to 2^16, one per piece between `KNOTS`: a decoder on any machine reads the same ones."""
        z = torch.tensor(KNOTS, dtype=torch.float64)[:, None, None] / 8
        inner = (z - self.mean.double()) / self.log_scale.double().exp()
        mass = (self.weight.double().softmax(-1) * inner.sigmoid()).sum(-1).diff(dim=0)      # (pieces, C)
        table = (mass * 2**16).round().clamp(min=1).T
        table.scatter_add_(1, table.argmax(1, keepdim=True), 2**16 - table.sum(1, keepdim=True))
        self.table.copy_(table)

    def forward(self, z):
        shape = (1, -1, 1, 1, self.mean.shape[1])
        inner = (z[..., None] / LATENT_SPREAD - self.mean.view(shape)) / self.log_scale.exp().view(shape)
        log_density = -inner.abs() - 2 * F.softplus(-inner.abs()) - self.log_scale.view(shape)
        mixed = torch.logsumexp(log_density + self.weight.log_softmax(-1).view(shape), -1)
        return (mixed - math.log(LATENT_SPREAD)).sum((1, 2, 3)) / math.log(2)


def colours(pixels):
    """Integer RGB (…, 3) → luma − 128, blue − green, red − green: JPEG 2000's reversible transform, a 1×1 convolution by integer additions."""
    red, green, blue = (pixels[..., i] for i in range(3))
    return np.stack([green + ((blue - green + red - green) >> 2) - 128, blue - green, red - green], -1)


def uncolours(values):
    """The inverse of `colours`."""
    luma, blue, red = (values[..., i] for i in range(3))
    green = luma + 128 - ((blue + red) >> 2)
    return np.stack([red + green, green, blue + green], -1)


class Squeeze(nn.Module):
    """(N, C, H, W) → (N, 4C, H/2, W/2): the four pixels of a cell in the order a, b1, b2, b3."""

    def forward(self, x):
        return torch.cat([x[:, :, i::2, j::2] for i, j in CELL], 1), 0.0


class Split(nn.Module):
    """The first ``keep`` channels go on; the others pass through ``layers``, the last of which is a `MixtureCDF`, and leave the flow."""

    def __init__(self, keep: int, *layers: nn.Module):
        super().__init__()
        self.keep, self.layers = keep, layers

    def forward(self, x):
        total, latent = 0.0, x[:, self.keep:]
        for layer in self.layers[:-1]:
            latent, gain = layer(latent)
            total = total + gain
        return x[:, :self.keep], total + self.layers[-1](latent)


class Level(nn.Module):
    def __init__(self, width: int = 32):
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(group, width) for group in GROUPS)
        self.mix, self.prior = Conv1x1(9), MixtureCDF(9)
        with torch.no_grad():       # begin with the mean of the nearest neighbours, residuals of about eight pixels
            near = {1: ((0, 1, 1), (0, 2, 1), (0, 1, 2), (0, 2, 2)), 2: ((0, 1, 1), (0, 1, 2), (1, 1, 1), (1, 0, 1)),
                    3: ((0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 1, 0))}
            for coupling in self.couplings:
                for row, channel in enumerate(coupling.changed):
                    for pixel, y, x in near[channel // 3]:
                        coupling.net.linear.weight[row, 3 * pixel + channel % 3, y, x] = 0.25
                coupling.net.last.bias[len(coupling.changed):] = -1.0


class PhotoFlow(nn.Module):
    """``forward(x)`` → log2 density (N,) of luma and colour differences with noise, (N, 3, H, W); H and W are multiples of ``2**levels``."""

    def __init__(self, levels: int = 3, width: int = 32):
        super().__init__()
        self.levels = levels
        self.fine, self.coarse = Level(width), Level(width)
        self.norm, self.prior = ActNorm([0., 0, 0], [4 / 60, 4 / 30, 4 / 30]), MixtureCDF(3)

    def stack(self) -> list[nn.Module]:
        """The layers in the order in which an encoder runs them."""
        layers = []
        for depth in range(self.levels):
            level = self.coarse if depth else self.fine     # the last coupling sees all others' channels, so it is the first to run
            layers += [Squeeze(), *reversed(level.couplings), Split(3, level.mix, level.prior)]
        return layers + [Split(0, self.norm, self.prior)]

    def forward(self, x):
        log2_density = 0.0
        for layer in self.stack():
            x, gain = layer(x)
            log2_density = log2_density + gain
        return log2_density


def bits_per_dim(flow: PhotoFlow, pixels, seed: int = 0) -> torch.Tensor:
    """−log2 density of dequantised uint8 (N, H, W, 3) pixels, in bits per dimension (N,)."""
    x = torch.from_numpy(colours(pixels.astype("int64"))).permute(0, 3, 1, 2).float()
    x = x + torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
    return -flow(x) / x[0].numel()


def train(flow: PhotoFlow, steps: int, seed: int, batch: int = 12, lr: float = 3e-3, on_step=None) -> PhotoFlow:
    """Trains in place; the order of the patches depends on ``seed`` alone."""
    images = photos.patches("train")
    order = torch.Generator().manual_seed(seed)
    slow = [p for name, p in flow.named_parameters() if "prior" not in name and "last" not in name]
    fast = [p for name, p in flow.named_parameters() if "prior" in name or "last" in name]       # few, and far from where they must go
    optimizer = torch.optim.Adam([{"params": slow}, {"params": fast}], lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [lr, 5 * lr], total_steps=steps, pct_start=0.15)
    for step in range(steps):
        pixels = images[torch.randint(len(images), (batch,), generator=order).numpy()]
        pixels = pixels[:, :, ::-1] if step % 2 else pixels
        loss = bits_per_dim(flow, pixels, seed=1_000_003 * seed + step).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if on_step:
            on_step(step, loss.item())
    return flow.eval()


def load(path: Path) -> PhotoFlow:
    """The float flow of a checkpoint (float16 weights, computed in float32)."""
    from safetensors import safe_open

    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint {path}; train it with  python -m workbench.benches.photo_flow REPLICA")
    with safe_open(path, "pt") as file:
        width = int(file.metadata()["width"])
        flow = PhotoFlow(width=width)
        flow.load_state_dict({k: file.get_tensor(k).float() if file.get_tensor(k).is_floating_point() else file.get_tensor(k)
                              for k in list(file.keys())})
    return flow.eval()


def main() -> None:
    from safetensors.torch import save_file

    from . import CHECKPOINTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    parser.add_argument("--steps", type=int, default=1800)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.replica)
    flow = PhotoFlow()
    train(flow, args.steps, args.replica,
          on_step=lambda step, loss: print(f"{step} {loss:.3f}", flush=True) if step % 50 == 0 else None)
    flow.half().float()         # what is shipped
    for module in flow.modules():
        if isinstance(module, MixtureCDF):
            module.freeze()
    with torch.no_grad():
        score = bits_per_dim(flow, photos.patches("test")).mean().item()
    path = CHECKPOINTS / f"iflow-{args.replica}.safetensors"
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in flow.state_dict().items()}, path,
              metadata={"net": "photo flow", "width": "32", "recipe": __doc__.strip(), "data": photos.fingerprint(), "test_bits_per_dim": f"{score:.3f}"})
    print(f"{path.name}: {score:.3f} bits per dimension on the test patches")


if __name__ == "__main__":
    main()
