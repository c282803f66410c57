"""Something asked of the background thread, and its answer, handed from one thread to the other."""

from __future__ import annotations

import threading
import time
from typing import Generic, TypeVar

__all__ = ["Asked"]

T = TypeVar("T")


class Asked(Generic[T]):
    """One answer, awaited once: from the end of the wait on it is closed, and a later answer is let go.

    Attributes:
        value: the answer; None where there was none.
        reason: why there was none.
    """

    def __init__(self, seconds: float) -> None:
        """Ask; an answer after `seconds` is no use."""
        self.value: T | None = None
        self.reason = "no answer in time"
        self._deadline = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._over = threading.Event()

    def seconds_left(self) -> float:
        """Time until an answer is no use any more."""
        return 0.0 if self._over.is_set() else self._deadline - time.monotonic()

    def answer(self, value: T) -> None:
        """Give the answer; let go where nobody waits any more."""
        with self._lock:
            if not self._over.is_set():
                self.value, self.reason = value, ""
                self._over.set()

    def decline(self, reason: str) -> None:
        """Say why there is no answer."""
        with self._lock:
            if not self._over.is_set():
                self.reason = reason
                self._over.set()

    def wait(self, seconds: float) -> T | None:
        """The answer, waiting at most so long for it; then closed."""
        self._over.wait(max(0.0, seconds))
        with self._lock:
            self._over.set()
        return self.value
