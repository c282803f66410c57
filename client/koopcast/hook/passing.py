"""Asking in passing: a question whose answer nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from koopcast.hook.link import Link
from koopcast.hook.question import Question
from koopcast.hook.schedule import JumpSchedule
from koopcast.operator import Operator

__all__ = ["InPassing"]

_SECONDS: Final = 60.0
"""How long such an answer may take."""


class InPassing:
    """One question at a time.

    Where training is noisy, nearly always all that comes of an attempt is how little of the path is foretold. To know that
    some steps later is soon enough, and costs training nothing.

    Attributes:
        question: whose answer is not there yet; None: there is none.
    """

    def __init__(self, link: Link) -> None:
        """Ask this service."""
        self.question: Question | None = None
        self._link = link

    def ask(
        self, schedule: JumpSchedule, horizons: Sequence[float], operators: Sequence[Operator]
    ) -> Question | None:
        """Ask at the schedule's next attempt; the question, where it is on its way."""
        question = Question(schedule.asked_at, schedule.decided_at, horizons, operators, _SECONDS)
        if not self._link.put(question):
            return None
        self.question = question
        return question

    def take(self) -> Question | None:
        """The question once it is answered, or declined: it is none any more. None: not yet."""
        question = self.question
        if question is None or question.seconds_left() > 0:
            return None
        self.question = None
        return question
