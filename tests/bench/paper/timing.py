"""Time on the clock and on the processor: on a busy machine only the second can be compared."""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["Cost", "Stopwatch"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What something took. Unit: seconds.

    Attributes:
        wall: on the clock, waiting included.
        cpu: on the processor, all threads of this process together: an embedded service's as well.
    """

    wall: float
    cpu: float


class Stopwatch:
    """Runs from its construction."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def lap(self) -> Cost:
        """Return the cost since the last lap, or since the start."""
        wall, cpu = time.perf_counter(), time.process_time()
        cost = Cost(wall - self._wall, cpu - self._cpu)
        self._wall, self._cpu = wall, cpu
        return cost
