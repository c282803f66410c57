"""Leases: who may write to a job, and until when."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from koopcast.errors import LeaseLost
from koopcast.status import Lease
from koopcast_server.shared_memory import OfferedMemory

__all__ = ["WriterLease"]


@dataclass(slots=True)
class WriterLease:
    """The right to write to one job. Any call of its holder renews it.

    Attributes:
        seconds: how long it lives without a call.
        holder: version string of the holder.
        lease_id: the secret that proves it; empty: nobody holds it.
        resumed: whether its holder resumed a job.
        memory: what its holder shares with the service, open; None: nothing. It is closed when the lease ends.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    holder: str = ""
    lease_id: str = ""
    resumed: bool = False
    memory: OfferedMemory | None = None
    _expires: float = field(default=0.0)

    @property
    def held(self) -> bool:
        """Whether somebody holds it now."""
        return bool(self.lease_id) and self.clock() < self._expires

    @property
    def idle_seconds(self) -> float:
        """Time since it was last held; 0 while it is."""
        return max(0.0, self.clock() - self._expires)

    def grant(self, holder: str, *, resumed: bool = False) -> str:
        """Gives the lease to a new holder, whoever had it; returns the secret."""
        self.close_memory()
        self.holder, self.resumed = holder, resumed
        self.lease_id = secrets.token_urlsafe(24)
        self._expires = self.clock() + self.seconds
        return self.lease_id

    def renew(self, job: str, lease_id: str) -> None:
        """Renews it for its holder. A lease that ran out but that nobody else took is renewed too.

        Raises:
            LeaseLost: `lease_id` is not, or no longer, the holder's.
        """
        if not (self.lease_id and hmac.compare_digest(self.lease_id.encode(), lease_id.encode())):
            raise LeaseLost(
                f"this writer does not hold job {job!r}: another one took it over, or it was released; open the "
                "job again",
                reason="LEASE_LOST",
                job=job,
            )
        self._expires = self.clock() + self.seconds

    def release(self) -> None:
        """Ends it now."""
        self.close_memory()
        self.lease_id = ""
        self._expires = min(self._expires, self.clock())

    def close_memory(self) -> None:
        """Gives back what the holder shares; it must send bytes over its connection from now on."""
        if self.memory is not None:
            self.memory.close()
            self.memory = None

    def describe(self) -> Lease:
        """Its state, for status pages."""
        left = max(0.0, self._expires - self.clock()) if self.held else 0.0
        return Lease(self.held, left, self.holder if self.held else "")
