"""How long an attempt may hold the training thread."""

from __future__ import annotations

import time

from koopcast.hook.stats import Counters

__all__ = ["WaitBudget"]


class WaitBudget:
    """How long the training thread may still wait for the service before the next attempt is over.

    Attributes:
        left: Unit: seconds.
    """

    def __init__(self, seconds: float, counters: Counters) -> None:
        """Allow so many seconds an attempt."""
        self._seconds = seconds
        self._counters = counters
        self.left = seconds

    def renew(self) -> None:
        """Begin the next attempt."""
        self.left = self._seconds

    def spend_since(self, started: float) -> None:
        """Count a wait that began at `started` (``time.monotonic``)."""
        waited = time.monotonic() - started
        self.left = max(0.0, self.left - waited)
        self._counters.seconds_blocked += waited
