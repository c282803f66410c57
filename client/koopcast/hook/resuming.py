"""Goes on with a run that ended: what is written down of it, and how its job and its window are found again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.hook.asked import Asked
from koopcast.job import Job

__all__ = ["Resumption", "SavedRun"]

FORMAT: Final = 1
"""Of what `Ahead.state_dict` returns."""


class Resumption(Asked[bool]):
    """Asked of the background thread: hold the job of an earlier process; the answer: whether its window goes on.

    Attributes:
        lease_id: that process's lease; the job is taken over from it where it is still alive.
        segment: of its window when it was written down; 0: there was none.
        next_step: step of the snapshot that comes next.
    """

    def __init__(self, lease_id: str, segment: int, next_step: int, seconds: float) -> None:
        """Ask; an answer after `seconds` is no use."""
        super().__init__(seconds)
        self.lease_id = lease_id
        self.segment = segment
        self.next_step = next_step

    def fits(self, job: Job, stride: int, averaging: int) -> bool:
        """Whether the next snapshot follows the newest one that this job held when it was opened."""
        return (
            job.resumed
            and job.snapshots_held > 0
            and job.held_averaging == averaging
            and (job.held_segment, job.held_step + stride) == (self.segment, self.next_step)
        )


@dataclass(frozen=True, slots=True)
class SavedRun:
    """What `Ahead.state_dict` writes down: numbers and names, nothing of the model's size.

    Attributes:
        job: name of the job.
        lease_id: the lease that held it: a secret, with which the job can be taken over while the lease lives.
        segment: segment of the newest snapshot that the service accepted; 0: the next one begins a segment.
        step: its step.
        steps: optimizer steps done.
        clock: sum of the learning rates; None: unknown.
        schedule: what `JumpSchedule.state` returns.
        search: what the search order wants to know again.
        counters: what `Counters.state` returns.
    """

    job: str
    lease_id: str
    segment: int
    step: int
    steps: int
    clock: float | None
    schedule: Mapping[str, int]
    search: Any
    counters: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """A plain dict."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"format": FORMAT, **fields}

    @classmethod
    def from_dict(cls, state: Any) -> Self:
        """From what `to_dict` returned.

        Raises:
            ArgumentTypeError, ArgumentValueError: it is something else.
        """
        if not isinstance(state, Mapping):
            raise ArgumentTypeError("the state must be what Ahead.state_dict() returned", field="state")
        names = set(cls.__dataclass_fields__)
        if state.get("format") != FORMAT or not names <= set(state):
            raise ArgumentValueError(
                f"the state must be what Ahead.state_dict() of this version returned (format {FORMAT}); leave it out to "
                "begin anew",
                field="state",
            )
        return cls(**{name: state[name] for name in names})
