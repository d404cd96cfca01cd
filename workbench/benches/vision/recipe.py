"""Trains the shipped `vision` nets:  ``python -m workbench.benches.vision.recipe vgg-small 0``  (about three minutes on one core).

AdamW, one-cycle learning rate up to 6e-3 (ViT: 3e-3), weight decay 1e-3, batch 128, 6 epochs (MobileNet and ViT: 16, LeNets: 12), float32, one thread; the replica number is
the seed of initialisation and of the order of the images (which images a LeNet sees: :func:`workbench.benches.vision.lenet.source`). Written to ``data/checkpoints/<net>-<replica>.safetensors`` as float16.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from . import data
from .lenet import source as images_of
from .nets import NETS

EPOCHS = {"vgg-small": 6, "resnet20": 6, "mobilenet": 16, "vit-tiny": 16, "lenet5": 12, "lenet5-five": 12, "lenet300": 12}
RATE = {"vit-tiny": 3e-3}


def batches(seed: int, size: int = 128, split: str = "train", net: str = "") -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches of the images of ``net`` without end; the order depends on ``seed`` alone."""
    source = images_of(net, split)
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(source), generator=generator).split(size):
            if len(index) == size:
                images = torch.from_numpy(source.images[index.numpy()].astype("float32")).sub_(100.0).div_(70.0)
                yield images.contiguous(memory_format=torch.channels_last), torch.from_numpy(source.labels[index.numpy()])


def train(model: nn.Module, steps: int, seed: int, lr: float = 6e-3, weight_decay: float = 1e-3, on_step=None, net: str = "") -> nn.Module:
    """Trains in place on the images of ``net``: AdamW with a one-cycle schedule. ``on_step(step, loss)`` is called after each step."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step, (images, labels) in zip(range(steps), batches(seed, net=net)):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step:
            on_step(step, loss.item())
    return model.eval()


def accuracy(model: nn.Module, split: str = "test", n: int | None = None, net: str = "") -> float:
    images, labels = images_of(net, split).tensors(n)
    with torch.no_grad():
        return 100 * sum((model(x).argmax(1) == y).sum().item() for x, y in zip(images.split(250), labels.split(250))) / len(labels)


def main() -> None:
    from safetensors.torch import save_file
    from tqdm import tqdm

    from .. import CHECKPOINTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", choices=NETS)
    parser.add_argument("replica", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.replica)
    steps = EPOCHS[args.net] * (len(images_of(args.net, "train")) // 128)
    with tqdm(total=steps, desc=f"{args.net}-{args.replica}", mininterval=5) as bar:
        model = train(NETS[args.net](), steps, args.replica, RATE.get(args.net, 6e-3), on_step=lambda step, loss: bar.update(), net=args.net)
    score = accuracy(model, net=args.net)
    path = CHECKPOINTS / f"{args.net}-{args.replica}.safetensors"
    save_file({k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()},
              path, metadata={"net": args.net, "recipe": __doc__.strip(), "data": str(data.EXPECTED), "test_accuracy": f"{score:.2f}"})
    print(f"{path.name}: {score:.2f} % on the test images")


if __name__ == "__main__":
    main()
