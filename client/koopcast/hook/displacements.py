"""Displacements for the training thread, one at a time: all candidates together would be many times the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from koopcast.hook.asked import Asked
from koopcast.hook.budget import WaitBudget
from koopcast.prediction import Prediction, Tensors

__all__ = ["Displacements", "Fetch", "FetchedDisplacements", "HeldDisplacements", "as_tensors"]


class Displacements(Protocol):
    """Where a trial finds the displacement of a prediction: of the service, or of a ring that the trainer holds."""

    @property
    def failure(self) -> str:
        """Why the last displacement was not to be had; empty where all were."""
        ...

    def of(self, prediction: Prediction) -> Mapping[str, Tensor] | None:
        """The displacement by parameter name, on any device; None where it cannot be had.

        On the training thread; never waits longer than the attempt may.
        """
        ...


class Fetch(Asked[Mapping[str, Tensor]]):
    """One displacement, asked of the background thread.

    Attributes:
        prediction: whose.
    """

    def __init__(self, prediction: Prediction, seconds: float) -> None:
        """Ask; an answer after `seconds` is no use."""
        super().__init__(seconds)
        self.prediction = prediction


class FetchedDisplacements:
    """Fetched by the background thread, within what is left of an attempt's wait."""

    def __init__(self, put: Callable[[Fetch], bool], budget: WaitBudget) -> None:
        """Fetch by `put`, which says False where the service is lost."""
        self.failure = ""
        self._put = put
        self._budget = budget

    def of(self, prediction: Prediction) -> Mapping[str, Tensor] | None:
        """The displacement by parameter name; None where it did not come in time, or is unusable."""
        fetch = Fetch(prediction, self._budget.left)
        started = time.monotonic()
        if not self._put(fetch):
            fetch.decline("the service was lost")
        displacement = fetch.wait(self._budget.left)
        self._budget.spend_since(started)
        if displacement is None:
            self.failure = fetch.reason
        return displacement


class HeldDisplacements:
    """Those of predictions that brought theirs along."""

    failure = ""

    def of(self, prediction: Prediction) -> Mapping[str, Tensor] | None:
        """The displacement by parameter name."""
        return as_tensors(prediction.displacement)


def as_tensors(displacement: Tensors) -> dict[str, Tensor]:
    """The same memory as torch tensors."""
    return {name: torch.from_numpy(moved) for name, moved in displacement.items()}
