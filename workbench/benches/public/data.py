"""The public test data as tensors: which images are calibration, which are test, and which of them are true pixels.

| split | from | pixels |
|---|---|---|
| ``cifar`` calibration | first 256 training images of data_batch_1 | true |
| ``cifar`` test ``true`` | 199 images of the MLPerf Tiny stimuli, nearly unbiased | true |
| ``cifar`` test ``easy`` | 100 images of VNN-COMP 2021, which robust nets get right | true |
| ``cifar`` test ``jpeg`` | the first 50 test images of each class | JPEG copies, quality 75: all nets are some 10 points worse on them |
| ``person`` | 100 photographs: every fifth pair is calibration (20), the rest test (80) | true |
| ``keywords`` | 1,000 recordings: every fourth is calibration (250), the rest test (747: three stand in both) | true |

No training images of the two last are at hand, so a part of the test set is set aside for batch-norm statistics and scores; no test item is among it.
"""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...core import datasets

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CALIBRATION, JPEG_EACH, IMAGE_LIMIT = 256, 50, 1 << 16


@dataclass(frozen=True)
class Split:
    """Raw items, channels first: (N, C, H, W) float32 as stored (images 0…255), labels (N,) int64."""

    items: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def arrays(name: str, *keys: str) -> list[np.ndarray]:
    """Arrays of an ``.npz`` of the public tier; nothing is unpickled. `datasets.DataError`: it is nowhere, or not what it should be."""
    path, = datasets.get(name)
    try:
        with np.load(path, allow_pickle=False) as found:
            return [found[key] for key in keys]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise datasets.DataError(f"{path} holds no arrays {', '.join(keys)}: {error}") from None


def _images(pixels: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), torch.from_numpy(labels.astype(np.int64)))


@lru_cache(maxsize=1)
def cifar() -> dict[str, Split]:
    train, train_labels, test, labels, source = arrays("cifar10-lossless", "x_train", "y_train", "x_test", "y_test", "test_from")
    true, easy = source == "mlperf-tiny", source == "vnn-comp"
    return {"calibration": _images(train[:CALIBRATION], train_labels[:CALIBRATION]), "true": _images(test[true], labels[true]),
            "easy": _images(test[easy], labels[easy]), "jpeg": jpeg()}


def jpeg(each: int = JPEG_EACH) -> Split:
    """The first ``each`` test images of every class, as JPEG copies."""
    path, = datasets.get("cifar10-jpeg")
    return read_jpegs(path, each)


def read_jpegs(path: Path, each: int) -> Split:
    """``test/<class>/NNNN.jpg`` of a tar archive, classes in their order. `datasets.DataError`: too few, or not 32×32 pictures."""
    from PIL import Image, UnidentifiedImageError

    pixels, labels = [], []
    try:
        with tarfile.open(path) as archive:
            wanted = {f"test/{name}/{i:04d}.jpg": (k, i) for k, name in enumerate(CLASSES) for i in range(each)}
            found = {}
            for member in archive:
                if member.isfile() and member.name in wanted and member.size <= IMAGE_LIMIT:
                    with Image.open(io.BytesIO(archive.extractfile(member).read())) as image:
                        found[wanted[member.name]] = np.asarray(image.convert("RGB"))
    except (OSError, EOFError, tarfile.TarError, UnidentifiedImageError, ValueError) as error:
        raise datasets.DataError(f"{path} is no archive of JPEG images: {error}") from None
    if len(found) < len(wanted) or any(picture.shape != (32, 32, 3) for picture in found.values()):
        raise datasets.DataError(f"{path}: {len(found)} of {len(wanted)} test images of 32×32 pixels are there")
    for key in sorted(found):
        pixels.append(found[key])
        labels.append(key[0])
    return _images(np.stack(pixels), np.array(labels))


def _set_aside(every: int, whole: Split, blocks: int = 1) -> dict[str, Split]:
    """``every``-th block of items becomes calibration; the rest is test, without the few that the published set holds twice and calibration has."""
    held = torch.arange(len(whole)) // blocks % every == 0
    seen = {item.numpy().tobytes() for item in whole.items[held]}
    test = ~held & torch.tensor([item.numpy().tobytes() not in seen for item in whole.items])
    return {"calibration": Split(whole.items[held], whole.labels[held]), "true": Split(whole.items[test], whole.labels[test]), "all": whole}


@lru_cache(maxsize=1)
def person() -> dict[str, Split]:
    """Photographs 96×96; label 1: a person is in it. The classes alternate, so that both splits hold as many of each."""
    pixels, labels = arrays("mlperf-vww-stimuli", "x", "y")
    order = np.argsort(np.argsort(labels, kind="stable").argsort() % (len(labels) // 2), kind="stable")
    return _set_aside(5, _images(pixels[order], labels[order]), blocks=2)


@lru_cache(maxsize=1)
def keywords() -> dict[str, Split]:
    """Cepstral coefficients (N, 1, 49, 10) as numbers (not as the int8 they are stored in)."""
    x, labels, scale, zero = arrays("mlperf-kws-stimuli", "x", "y", "scale", "zero_point")
    numbers = (torch.from_numpy(x).float() - float(np.ravel(zero)[0])) * float(np.ravel(scale)[0])
    return _set_aside(4, Split(numbers[:, None], torch.from_numpy(labels.astype(np.int64))))
