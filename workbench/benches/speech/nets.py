"""The `speech` net: a small causal Conv-TasNet (Luo and Mesgarani 2019) with ReLU and batch norm, which folds into the convolutions.

| part | shape for one second of 8 kHz sound |
|---|---|
| encoder | Conv1d 1 → N, 20 samples, stride 10, ReLU: (N, 800) |
| bottleneck | 1×1 N → B, norm, ReLU |
| R·X blocks | x ← ReLU(x + conv 1×1 (ReLU norm depthwise 3, dilation 2^i (ReLU norm conv 1×1 x))), B → H → H → B |
| mask | 1×1 B → 2N, ReLU: one mask a voice, times the encoder's output |
| decoder | ConvTranspose1d N → 1, 20 samples, stride 10, for each voice |

All convolutions look into the past only, so that the net can run on a live signal: the delay is one window, 2.5 ms. ReLU after every sum
leaves zeros in all activations, which a sparse datapath can skip.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """1×1 → depthwise dilated (causal) → 1×1 with a residual; ``norm=False`` once batch norms are folded."""

    def __init__(self, trunk: int, inner: int, dilation: int, norm: bool = True):
        super().__init__()
        self.expand, self.norm1 = _conv(trunk, inner, norm)
        self.depth, self.norm2 = _conv(inner, inner, norm, kernel=3, dilation=dilation)
        self.reduce, self.norm3 = _conv(inner, trunk, norm)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        y = self.relu1(self.norm1(self.expand(x)))
        y = self.relu2(self.norm2(self.depth(F.pad(y, (2 * self.depth.dilation[0], 0)))))
        return self.relu3(x + self.norm3(self.reduce(y)))


def _conv(c_in: int, c_out: int, norm: bool, kernel: int = 1, dilation: int = 1) -> tuple[nn.Conv1d, nn.Module]:
    conv = nn.Conv1d(c_in, c_out, kernel, dilation=dilation, groups=c_in if kernel > 1 else 1, bias=not norm)
    return conv, nn.BatchNorm1d(c_out) if norm else nn.Identity()


class Separator(nn.Module):
    """``mixture`` (batch, samples) in ±1 → voices (batch, 2, samples). ``inner``: the width H of each block; ``gain``: a power of two that the output
    is multiplied by (the loss leaves loudness open; a shift of the output costs nothing).

    Every activation that a layer reads passes through a module of its own (`activations`), where a forward hook may see or quantise it.
    """

    def __init__(self, filters: int = 64, trunk: int = 48, inner=(96,) * 10, stack: int = 5, window: int = 20, norm: bool = True,
                 gain: float = 1.0):
        super().__init__()
        self.window, self.stride, self.stack, self.folded, self.gain = window, window // 2, stack, not norm, gain
        self.sound, self.product = nn.Identity(), nn.Identity()
        self.encoder, self.encoder_relu = nn.Conv1d(1, filters, window, self.stride, bias=False), nn.ReLU()
        self.bottleneck, self.norm = _conv(filters, trunk, norm)
        self.bottleneck_relu = nn.ReLU()
        self.blocks = nn.ModuleList(Block(trunk, width, 2 ** (i % stack), norm) for i, width in enumerate(inner))
        self.mask, self.mask_relu = nn.Conv1d(trunk, 2 * filters, 1), nn.ReLU()
        self.decoder = nn.ConvTranspose1d(filters, 1, window, self.stride, bias=False)

    def config(self) -> dict:
        """The numbers that rebuild this net, pruned or not."""
        return {"filters": self.encoder.out_channels, "trunk": self.bottleneck.out_channels, "stack": self.stack, "window": self.window,
                "inner": [block.expand.out_channels for block in self.blocks], "norm": not self.folded, "gain": self.gain}

    def layers(self) -> dict[str, nn.Module]:
        """The convolutions by name, in the order in which they run."""
        return {name: module for name, module in self.named_modules() if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d))}

    def activations(self) -> dict[str, nn.Module]:
        """The modules whose outputs are what the layers read, by name."""
        return {name: module for name, module in self.named_modules()
                if isinstance(module, nn.ReLU) or name in ("sound", "product")}

    def forward(self, mixture):
        samples, past = mixture.shape[-1], self.window - self.stride
        padded = F.pad(mixture, (past, -(samples - self.window) % self.stride + past))
        encoded = self.encoder_relu(self.encoder(self.sound(16 * padded.unsqueeze(1))))
        y = self.bottleneck_relu(self.norm(self.bottleneck(encoded)))
        for block in self.blocks:
            y = block(y)
        mask = self.mask_relu(self.mask(y)).unflatten(1, (2, -1))
        voices = self.decoder(self.product(mask * encoded.unsqueeze(1)).flatten(0, 1)).unflatten(0, (-1, 2)).squeeze(2)
        return self.gain * voices[..., past:][..., :samples]


def fold(net: Separator) -> Separator:
    """A copy of the net with each batch norm folded into the convolution before it: W·γ/σ and β − μ·γ/σ (exact, as every norm follows a convolution)."""
    if net.folded:
        return copy.deepcopy(net).eval()
    plain = Separator(**{**net.config(), "norm": False})
    state = {name: net.get_submodule(name).weight.detach().clone() for name in ("encoder", "decoder")}
    state = {f"{name}.weight": weight for name, weight in state.items()}
    state |= {"mask.weight": net.mask.weight.detach().clone(), "mask.bias": net.mask.bias.detach().clone()}
    pairs = {"bottleneck": net.norm}
    for i, block in enumerate(net.blocks):
        pairs |= {f"blocks.{i}.expand": block.norm1, f"blocks.{i}.depth": block.norm2, f"blocks.{i}.reduce": block.norm3}
    for name, norm in pairs.items():
        gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        state[f"{name}.weight"] = net.get_submodule(name).weight.detach() * gain[:, None, None]
        state[f"{name}.bias"] = norm.bias.detach() - norm.running_mean * gain
    plain.load_state_dict(state)
    return plain.eval()


def load(replica: int) -> Separator:
    """The shipped dense net ``data/checkpoints/separator-<replica>.safetensors``, in float32."""
    import json

    from safetensors import safe_open
    from safetensors.torch import load_file

    from .. import CHECKPOINTS

    path = CHECKPOINTS / f"separator-{replica}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint {path.name}; `python -m workbench.benches.speech.recipe {replica}` trains it")
    with safe_open(path, "pt") as file:
        net = Separator(**json.loads(file.metadata()["config"]))
    net.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()}, strict=False)
    return net.eval()
