"""The rules of steps: what may follow the newest snapshot of a segment. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from koopcast.errors import FailedPrecondition, InvalidArgument

__all__ = ["Newest", "Time", "check_follows", "check_numbers"]

_LAST_NUMBER: Final = 2**53


class Time(Protocol):
    """When a snapshot is: its segment (from 1), trainer step, averaging length and clock."""

    @property
    def segment(self) -> int: ...  # noqa: D102
    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def averaging(self) -> int: ...  # noqa: D102
    @property
    def clock(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest snapshot of a segment."""

    segment: int
    step: int
    averaging: int
    clock: float


def check_numbers(snapshot: Time) -> None:
    """Raises InvalidArgument for a segment 0, and for numbers beyond 2**53."""
    for field, number, least in (("segment", snapshot.segment, 1), ("step", snapshot.step, 0)):
        if not least <= number <= _LAST_NUMBER:
            raise InvalidArgument(f"{field} must lie in {least}..2**53, not {number}", field=field)


def check_follows(newest: Time, snapshot: Time, stride: int) -> None:
    """Checks that a snapshot is the next one of the segment.

    Raises:
        FailedPrecondition: a step that does not rise.
        InvalidArgument: a step off the stride, another averaging length, or a clock that does not rise.
    """
    expected = newest.step + stride
    if snapshot.step <= newest.step:
        raise FailedPrecondition(
            f"step {snapshot.step} does not rise: the newest snapshot of segment {newest.segment} is of step "
            f"{newest.step}; start a new segment to go back",
            reason="STEP_BACKWARDS",
            field="step",
            step=snapshot.step,
            newest=newest.step,
        )
    if snapshot.step != expected:
        raise InvalidArgument(
            f"step {snapshot.step} breaks the stride: after step {newest.step} comes {expected} (stride {stride}); "
            "start a new segment where snapshots were dropped",
            reason="NON_UNIFORM_STRIDE",
            field="step",
            step=snapshot.step,
            expected=expected,
            stride=stride,
        )
    if snapshot.averaging != newest.averaging:
        raise InvalidArgument(
            f"averaging is {snapshot.averaging}, but the segment's snapshots have {newest.averaging}",
            field="averaging",
        )
    if snapshot.clock <= newest.clock:
        raise InvalidArgument(
            f"the clock must rise within a segment: {snapshot.clock} follows {newest.clock}; give every snapshot a "
            "clock, or none",
            field="clock",
            newest=newest.clock,
        )
