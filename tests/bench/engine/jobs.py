"""Jobs to measure: a window on the CPU, as the service holds it, and snapshots of a known linear system."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from koopcast.operator import Operator
from koopcast.window import Window
from koopcast.wire import Layout, TensorSpec
from koopcast_server.answering import Answer, Question
from koopcast_server.held_window import HeldWindow
from koopcast_server.window_shape import JobShape

__all__ = ["AHEAD", "RANK", "Job", "Motion", "matrix_of", "one_block"]

RANK: Final = 8
AHEAD: Final = 5.0
"""How far predictions look. Unit: strides."""

_ANGLES: Final = (0.3, 0.6, 1.0, 1.5)
_DECAY: Final = 0.99
_PERIOD: Final = 1 << 20
"""Elements after which the snapshots repeat: values cost the engine nothing, and making new ones would cost more."""


class Motion:
    """Weights that move as four decaying rotations: eight modes, alike for the weights and for their differences."""

    def __init__(self, elements: int) -> None:
        """Draw the modes' shapes."""
        self.elements = elements
        generator = torch.Generator().manual_seed(0)
        self._shapes = torch.randn(RANK, min(elements, _PERIOD), generator=generator)

    def write(self, time: int, out: Tensor) -> None:
        """Write the snapshot at `time` into `out`, (n,) float32, without scratch."""
        angles = torch.tensor(_ANGLES) * time
        amplitudes = _DECAY**time * torch.cat([angles.cos(), angles.sin()])
        for some in torch.split(out, self._shapes.shape[1]):
            torch.mv(self._shapes[:, : len(some)].t(), amplitudes, out=some)


class Job:
    """One job's device side, with what lies beneath it in reach of a benchmark."""

    def __init__(self, specs: dict[str, TensorSpec], operator: Operator) -> None:
        """Allocate the window."""
        assert not isinstance(operator.window, str)
        self.operator, self.length = operator, operator.window
        self.shape = JobShape.of(Layout(specs), operator, 1, "float32")
        self.elements = self.shape.layout.elements
        self.held = HeldWindow(self.shape, torch.device("cpu"))
        assert isinstance(self.held._window, Window)
        self.window = self.held._window
        self.motion = Motion(self.elements)
        self.time = 0

    @property
    def spare(self) -> Tensor:
        """Where the coming snapshot is written."""
        return self.window.spare

    def fill(self) -> None:
        """Push a whole window and one snapshot more, so that the ring turns."""
        for _ in range(self.length + 1):
            self.motion.write(self.time, self.spare)
            self.publish()

    def refill(self) -> None:
        """A new segment, after a benchmark published what is no snapshot of the motion."""
        self.time = 0
        self.fill()

    def publish(self) -> None:
        """Take what stands in the spare place, with its Gram row: nothing is put off."""
        self.held.publish(starts_segment=self.time == 0)
        self.held.settle()
        self.time += 1

    def solve(self) -> Answer:
        """An answer, before it is as long as the model.

        Raises:
            RuntimeError: a block declines; combining it would be nothing but writing zeros.
        """
        ((answer,),) = self.held.solve([self.operator], Question((AHEAD,), 0.0))
        if answer.summary.moved < answer.summary.blocks:
            raise RuntimeError(f"{answer.summary.moved} of {answer.summary.blocks} blocks move")
        return answer

    def answer(self) -> Tensor:
        """The displacement of all weights, (n,)."""
        return self.held.displacement(self.solve())

    def write(self, answer: Answer, out: Tensor) -> None:
        """Likewise, into memory that is there already."""
        self.held._solver.write(answer.solved, out)


def one_block(elements: int) -> dict[str, TensorSpec]:
    """A single vector."""
    return {"weights": TensorSpec("float32", (elements,))}


def matrix_of(blocks: int, size: int) -> dict[str, TensorSpec]:
    """A matrix whose nodes are blocks of `size` elements."""
    return {"layer.weight": TensorSpec("float32", (blocks, size))}
