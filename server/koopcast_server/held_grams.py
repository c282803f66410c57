"""The products of one job whose window its trainers hold: rows in, coefficients out. Part of the engine's room."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from koopcast.errors import InternalError
from koopcast.gram import Floats, GramRow
from koopcast.operator import Operator
from koopcast.wire import Layout, TensorSpec
from koopcast_server.answering import Answer, Answering
from koopcast_server.solving import Solver
from koopcast_server.window_shape import JobShape

__all__ = ["HeldGrams"]


class HeldGrams(Answering):
    """Gram matrices of one job. Not safe for concurrent calls: the job's lock serialises them."""

    def __init__(self, shape: JobShape) -> None:
        """Allocate them, in the machine's memory: they are small."""
        self._grams = shape.new_grams()
        super().__init__(shape, self._grams)

    def take(self, parts: Sequence[GramRow], *, starts_segment: bool) -> None:
        """Makes a snapshot the newest one: the sum of what each shard says of it, in their order, whoever came first.

        Raises:
            InternalError: the row is not of this window; it stays as it was.
        """
        row = reduce(_sum, parts)
        held = 0 if starts_segment else min(self.snapshots_held, self._grams.length - 1)
        if row.velocity.shape[1] != held:
            raise InternalError(
                f"a row with {row.velocity.shape[1]} velocities came to a window that holds {held} with it; start a new "
                "segment",
                reason="ROW_MISFIT",
            )
        if starts_segment:
            self._grams.clear()
        self._grams.take(row)

    def coefficients(self, answer: Answer) -> tuple[Floats, Floats]:
        """(B, M) of the velocities, oldest first, and (B,) of the last snapshot, by block number."""
        velocity, last = self._solver.coefficients(answer.solved)
        return velocity.numpy(), last.numpy()

    def free(self) -> None:
        """Gives the memory back, whoever still refers to this object; no snapshot is held any more."""
        layout = Layout({"freed": TensorSpec("float32", (1,))})
        shape = JobShape.of(layout, Operator(window=3), 1, "float32", holders=1)
        self._store = self._grams = shape.new_grams()
        self._solver = Solver(self._grams, shape.plan)


def _sum(one: GramRow, other: GramRow) -> GramRow:
    with np.errstate(over="ignore"):  # what is infinite is found, and told, by the operator
        return GramRow(one.velocity + other.velocity, one.weight + other.weight, one.squared + other.squared)
