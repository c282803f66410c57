"""Writes what attempts came to where TensorBoard, or anything like it, shows it."""

from __future__ import annotations

import logging
import math
from typing import Protocol

from koopcast.hook.stats import Counters, JumpEvent
from koopcast.prediction import Prediction

__all__ = ["ScalarWriter", "Scalars"]

_LOG = logging.getLogger("koopcast")


class ScalarWriter(Protocol):
    """The part of `torch.utils.tensorboard.SummaryWriter` that is used."""

    def add_scalar(self, tag: str, value: float, global_step: int) -> object:
        """Write one number."""
        ...


class Scalars:
    """Writes ``koopcast/...`` scalars, one each attempt; what the writer raises is counted and told of once."""

    def __init__(self, writer: ScalarWriter | None, counters: Counters) -> None:
        """Write to `writer`; nothing where it is None."""
        self._writer = writer
        self._counters = counters

    def attempt(self, step: int) -> None:
        """An attempt ended, with a proposal or without."""
        self._write(step, "snapshots_dropped", self._counters.snapshots_dropped)
        self._write(step, "seconds_blocked", self._counters.seconds_blocked)

    def proposal(self, event: JumpEvent, prediction: Prediction | None) -> None:
        """A jump was proposed, and accepted or not."""
        self._write(event.step, "accepted", float(event.accepted))
        self._write(event.step, "horizon", event.horizon)
        self._write(event.step, "loss_before", event.loss_before)
        self._write(event.step, "loss_after", event.loss_after)
        self._write(event.step, "predicted_error", prediction.predicted_error if prediction else None)

    def undone(self, step: int, loss: float) -> None:
        """The last jump was undone, with this loss a stride after it."""
        self._write(step, "undone", 1.0)
        self._write(step, "loss_undone", loss)

    def _write(self, step: int, name: str, value: float | None) -> None:
        if self._writer is None or value is None or not math.isfinite(value):
            return
        try:
            self._writer.add_scalar(f"koopcast/{name}", value, step)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer from the user's object
            if not self._counters.tensorboard_errors:
                _LOG.warning("koopcast: tensorboard.add_scalar raised %r; training goes on", error)
            self._counters.tensorboard_errors += 1
