"""The oscillators' losses where training gets and where each operator would put the weights, over that at t₂."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper.scores import Score

__all__ = ["draw"]

_SHOWN: Final = {
    "paper, node": "paper: node",
    "paper, quasi-node of 5": "paper: quasi-node",
    "paper, layer": "paper: layer",
    "paper, tensor": "paper: tensor",
    "paper, weight": "paper: weight",
    "koopcast, default, service": "koopcast: default",
    "koopcast, default with a probe, service": "koopcast: with a probe",
}
_GREY, _ORANGE, _BLUE = "0.45", "#d55e00", "#0072b2"
"""Okabe and Ito's vermilion and blue."""


def draw(scores: Mapping[str, Mapping[str, Sequence[Score]]], path: Path) -> None:
    """Draw a panel for every optimizer, a column for every predictor, a dot for every network.

    Args:
        scores: by optimizer and predictor, as `run_oscillator` returns them.
        path: of the image.
    """
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(10.5, 5.0), layout="constrained")
        panels = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
        for axes, (optimizer, found) in zip(panels, scores.items(), strict=True):
            _panel(axes, found, optimizer.capitalize())
        panels[0].set_ylabel("loss at the end / loss at t₂ (bar: median)")
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _panel(axes: Axes, scores: Mapping[str, Sequence[Score]], title: str) -> None:
    some = next(iter(scores.values()))
    columns = [("training itself", [each.loss_trained / each.loss_before for each in some], _GREY)]
    for label, shown in _SHOWN.items():
        if label in scores:
            ratios = [each.loss_predicted / each.loss_before for each in scores[label]]
            columns.append((shown, ratios, _BLUE if "koopcast" in label else _ORANGE))
    for place, (_, ratios, colour) in enumerate(columns):
        values = np.nan_to_num(ratios, nan=np.inf)
        finite = values[np.isfinite(values)]
        axes.scatter(place + np.linspace(-0.28, 0.28, len(finite)), finite, s=9, color=colour, linewidths=0)
        axes.hlines(np.median(values), place - 0.38, place + 0.38, color=colour, linewidth=2)
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(columns)), [name for name, _, _ in columns], rotation=55, ha="right")
    axes.set(yscale="log", title=title)
    axes.grid(axis="y", alpha=0.3)
