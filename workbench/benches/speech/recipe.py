"""Trains the shipped `speech` nets:  ``python -m workbench.benches.speech.recipe 0``  (about four minutes on one core).

Loss: negative SI-SDR of the better of the two assignments of outputs to voices (permutation-invariant training). AdamW, one-cycle learning
rate up to 4e-3, batches of 4 one-second mixtures of any low with any high training clip, gradient norm at most 5, float32, one thread; the
replica number is the seed of initialisation and of the mixtures. Written to ``data/checkpoints/separator-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from . import data
from .nets import Separator


def si_sdr(estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB along the last axis (Le Roux et al. 2019): a gain on the estimate is no error."""
    estimate, reference = estimate - estimate.mean(-1, keepdim=True), reference - reference.mean(-1, keepdim=True)
    scale = (estimate * reference).sum(-1, keepdim=True) / (reference.square().sum(-1, keepdim=True) + 1e-8)
    target = scale * reference
    return 10 * torch.log10((target.square().sum(-1) + 1e-8) / ((estimate - target).square().sum(-1) + 1e-8))


def pit_si_sdr(estimates: torch.Tensor, voices: torch.Tensor) -> torch.Tensor:
    """Mean SI-SDR (dB) of two voices under the better of the two assignments: (batch, 2, samples) twice → (batch,)."""
    pairs = si_sdr(estimates.unsqueeze(2), voices.unsqueeze(1))
    return torch.maximum(pairs[:, 0, 0] + pairs[:, 1, 1], pairs[:, 0, 1] + pairs[:, 1, 0]) / 2


def improvement(model: nn.Module, mixture: torch.Tensor, voices: torch.Tensor, batch: int = 8) -> np.ndarray:
    """SI-SDRi in dB for each clip: the SI-SDR of the separated voices less that of the mixture itself."""
    with torch.no_grad():
        gains = [pit_si_sdr(model(m), v) - si_sdr(m.unsqueeze(1), v).mean(1) for m, v in zip(mixture.split(batch), voices.split(batch))]
    return torch.cat(gains).double().numpy()


def batches(seed: int, size: int = 4, samples: int = data.RATE) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless random pairs of training voices, each cut at random and turned up or down by as much as 2.5 dB."""
    bank, rng = data.split("train").voices, np.random.Generator(np.random.PCG64([7, seed]))
    while True:
        clip = rng.integers(len(bank), size=(size, 2))
        start = rng.integers(data.SAMPLES - samples, size=(size, 2))
        gain = 10 ** (rng.uniform(-1.25, 1.25, (size, 2, 1)) / 20) / 32_768
        voices = np.stack([[bank[c, voice, s:s + samples] for voice, (c, s) in enumerate(zip(*pair))] for pair in zip(clip, start)]) * gain
        voices = torch.from_numpy(voices.astype(np.float32))
        yield voices.sum(1), voices


def train(model: nn.Module, steps: int, seed: int, lr: float = 4e-3, on_step=None, source: Iterator | None = None) -> nn.Module:
    """Trains in place on the bench's mixtures or those of ``source``; ``on_step(step, loss in dB)`` is called after each step."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)
    for step, (mixture, voices) in zip(range(steps), source or batches(seed)):
        loss = -pit_si_sdr(model(mixture), voices).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if on_step:
            on_step(step, loss.item())
    return model.eval()


def main() -> None:
    from safetensors.torch import save_file
    from tqdm import tqdm

    from .. import CHECKPOINTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("replica", type=int)
    parser.add_argument("--steps", type=int, default=1_800)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.replica)
    with tqdm(total=args.steps, desc=f"separator-{args.replica}", mininterval=5) as bar:
        model = train(Separator(), args.steps, args.replica, on_step=lambda step, loss: bar.update())
    score = improvement(model, *data.split("test").tensors()).mean()
    path = CHECKPOINTS / f"separator-{args.replica}.safetensors"
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}, path,
              metadata={"config": json.dumps(model.config()), "data": data.fingerprint(), "test_si_sdri": f"{score:.2f}"})
    print(f"{path.name}: SI-SDRi {score:.2f} dB on the test clips")


if __name__ == "__main__":
    main()
