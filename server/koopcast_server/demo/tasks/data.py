"""Where the tasks' data come from: an environment variable, else an installed package, else a message that names it."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from koopcast_server.demo.data import DemoError

__all__ = [
    "BIBLE_VARIABLE",
    "DIAMONDS_VARIABLE",
    "FASHION_VARIABLE",
    "DataMissing",
    "load_bible",
    "load_diamonds",
    "load_fashion",
    "load_photograph",
]

FASHION_VARIABLE: Final = "KOOPCAST_FASHION_MNIST"
"""Environment variable that names a folder with Fashion-MNIST's IDX files."""
DIAMONDS_VARIABLE: Final = "KOOPCAST_DIAMONDS"
"""Environment variable that names a copy of diamonds.csv."""
BIBLE_VARIABLE: Final = "KOOPCAST_BIBLE"
"""Environment variable that names a text file, ASCII or UTF-8."""

_FASHION_INSTALLED: Final = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts them."""
_IMAGES, _LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"

_GRADES: Final[Mapping[str, Sequence[str]]] = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": ("J", "I", "H", "G", "F", "E", "D"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
"""Columns of diamonds.csv that are grades, worst first."""
_MEASURES: Final = ("carat", "depth", "table", "x", "y", "z")


class DataMissing(DemoError):
    """A data set cannot be found or read; the message says what to do."""


def load_fashion() -> tuple[Tensor, Tensor]:
    """Fashion-MNIST's training images, float32 (60000, 784) in 0 to 1, and labels, int64 (60000,).

    Xiao, Rasul & Vollgraf, arXiv 1708.07747; from the folder that the variable names, else from Debian's package.

    Raises:
        DataMissing: the files are not there, or no IDX files.
    """
    folder = Path(os.environ.get(FASHION_VARIABLE) or _FASHION_INSTALLED)
    try:
        images, labels = _read_idx(folder / _IMAGES), _read_idx(folder / _LABELS)
    except FileNotFoundError as error:
        raise DataMissing(
            f"{folder} has no {_IMAGES} and {_LABELS}: apt-get install dataset-fashion-mnist, or set "
            f"{FASHION_VARIABLE} to a folder that has them"
        ) from error
    pixels = torch.as_tensor(images.reshape(len(images), -1).astype(np.float32) / 255.0)
    return pixels, torch.as_tensor(labels.astype(np.int64))


def load_diamonds() -> tuple[Tensor, Tensor]:
    """53,940 diamonds: float32 (n, 9) of measures and grades, and float32 (n,) of log prices, all standardised.

    The rows are shuffled, always the same way (the file is partly sorted by price). From the file that the variable
    names, else from the one in the package plotnine, which is not imported: the file is all that is needed of it.

    Raises:
        DataMissing: there is no such file, or it has other columns.
    """
    named = os.environ.get(DIAMONDS_VARIABLE)
    spec = None if named else find_spec("plotnine")
    path = Path(named) if named else Path(spec.origin or "").parent / "data/diamonds.csv" if spec else None
    if path is None or not path.is_file():
        raise DataMissing(
            f"no {path or 'diamonds.csv'}: pip install --no-deps plotnine, or set {DIAMONDS_VARIABLE} to the file"
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        columns = [[float(row[name]) for row in rows] for name in _MEASURES]
        columns += [[float(grades.index(row[name])) for row in rows] for name, grades in _GRADES.items()]
        columns.append(np.log([float(row["price"]) for row in rows]).tolist())
    except (KeyError, ValueError) as error:
        raise DataMissing(f"{path} is not the diamonds table: {error!r}") from error
    table = np.array(columns).T[np.random.default_rng(0).permutation(len(rows))]
    table = (table - table.mean(axis=0)) / table.std(axis=0)
    standardised = torch.as_tensor(table.astype(np.float32))
    return standardised[:, :-1].contiguous(), standardised[:, -1].contiguous()


def load_bible() -> tuple[Tensor, str]:
    """The King James Bible in characters: their indices, int64 (n,), and the alphabet, sorted.

    From the file that the variable names (any text will do), else from the command `bible`, one line a verse,
    its number taken off.

    Raises:
        DataMissing: neither is there.
    """
    named = os.environ.get(BIBLE_VARIABLE)
    command = shutil.which("bible")
    if named:
        try:
            text = Path(named).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataMissing(f"{BIBLE_VARIABLE}={named} is no text file: {error}") from error
    elif command:
        asked = [command, "-f", "gen1:1-rev22:21"]
        written = subprocess.run(asked, capture_output=True, check=False, text=True)  # noqa: S603  # no shell
        text = "\n".join(line.partition(" ")[2] for line in written.stdout.splitlines())
    else:
        text = ""
    if not text:
        raise DataMissing(
            f"no text: apt-get install bible-kjv bible-kjv-text, or set {BIBLE_VARIABLE} to a text file"
        )
    alphabet = "".join(sorted(set(text)))
    index = {character: i for i, character in enumerate(alphabet)}
    return torch.tensor([index[character] for character in text]), alphabet


def load_photograph(side: int) -> Tensor:
    """float32 (side, side): brightness of a square photograph in 0 to 1; matplotlib's portrait of Grace Hopper.

    The picture (public domain, US Navy) is 512 pixels wide; its upper square is averaged down.

    Args:
        side: a divisor of 512.

    Raises:
        DataMissing: no matplotlib, or one without its sample data.
    """
    try:
        from matplotlib.cbook import get_sample_data  # noqa: PLC0415  # an extra of its own
        from matplotlib.image import imread  # noqa: PLC0415

        colours = imread(get_sample_data("grace_hopper.jpg", asfileobj=False))
    except (ModuleNotFoundError, OSError) as error:
        raise DataMissing(
            f"the photograph comes with matplotlib: pip install 'koopcast[demo]' ({error})"
        ) from error
    width = colours.shape[1]
    brightness = torch.as_tensor(colours[:width].mean(axis=2, dtype=np.float32) / 255.0)
    return nn.functional.avg_pool2d(brightness[None], width // side)[0]


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: two zeros, the type 8, the rank, big-endian sizes, then the elements."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\0\0\x08":
        raise DataMissing(f"{path} is no IDX file of bytes")
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", rank, offset=4)
    elements = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if len(elements) != sizes.prod():
        raise DataMissing(f"{path} has {len(elements)} elements, its header says {tuple(sizes)}")
    return elements.reshape(tuple(sizes))
