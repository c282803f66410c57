"""Jumps of a model that every rank holds a part of: all try the same prediction at the same time, each on its part.

The first rank searches. It tells the others what it does (`LedTrial`), and they do the same (`koopcast.hook.parts`): put the
loss of the weights as they are, or after a jump, or make one for good. A displacement travels as coefficients; each rank
combines its part of it in its own ring. What one rank finds is made one answer of all: losses are means, and what is
not finite, raises or cannot be had anywhere counts for everybody (`SharedEvaluator`, `SharedDisplacements`).

So no rank is ever ahead of the others by more than one collective, and each collective ends in time (see `ranks`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from koopcast.hook.attempts import Attempts
from koopcast.hook.budget import WaitBudget
from koopcast.hook.displacements import Displacements
from koopcast.hook.held_rows import CombinedDisplacements, Ring
from koopcast.hook.link import Link
from koopcast.hook.memory import Arena
from koopcast.hook.ranks import Ranks
from koopcast.hook.sharding import reshard
from koopcast.hook.shared_rows import Agreement, SharedRowsJob
from koopcast.hook.stats import Counters
from koopcast.hook.trial import Evaluator, OnJump, Probe, Trial
from koopcast.prediction import Prediction

__all__ = [
    "END",
    "EVALUATE",
    "KEEP",
    "LOSS",
    "LedAttempts",
    "LedTrial",
    "SharedDisplacements",
    "SharedEvaluator",
    "Together",
]

END, LOSS, EVALUATE, KEEP = range(4)
"""What the first rank says it does."""


class Together:
    """What the parts of one job share.

    Attributes:
        ranks: the processes.
        link: this process's, to the service.
    """

    def __init__(self, ranks: Ranks, job: SharedRowsJob, link: Link) -> None:
        """Hold this process's part."""
        self.ranks = ranks
        self._job = job
        self.link = link

    def has_fallen_out(self) -> bool:
        """Whether any part misses a snapshot. On all ranks."""
        return self.ranks.any_of(self._job.fallen_out or not self.link.up)

    def begin(self, first_step: int) -> None:
        """Begin a segment with the snapshot of this step, as the first rank says. On all ranks."""
        proposal = self._job.proposal(first_step)
        segment, first = self.ranks.tell([proposal.segment, proposal.first_step])
        lease_id = self.ranks.tell_text(proposal.lease_id if self.link.up else "")
        self._job.adopt(Agreement(lease_id, segment, first))

    def begin_alike(self, first_step: int) -> None:
        """Likewise, where every rank knows by itself that the trajectory broke: nothing is said."""
        self._job.adopt(self._job.agreed.next(first_step))


class SharedEvaluator(Evaluator):
    """Calls the user's probe and `on_jump` on all ranks at the same time, with one result for all."""

    def __init__(
        self,
        model: nn.Module,
        probe: Probe | None,
        on_jump: OnJump | None,
        counters: Counters,
        *,
        strict: bool,
        ranks: Ranks,
    ) -> None:
        """Call these for this rank's part of the model."""
        super().__init__(model, probe, on_jump, counters, strict=strict)
        self._ranks = ranks

    def adapt(self) -> bool:
        """Run `on_jump`; whether it went well everywhere."""
        well = False
        try:
            well = super().adapt()
        finally:
            reshard(self.model)
            well = self._ranks.all_of(well)
        return well

    def loss(self) -> float:
        """Run the probe; the mean of what it gives on the ranks, NaN where it is not finite or raised on any."""
        loss = math.nan
        try:
            loss = super().loss()
        finally:
            reshard(self.model)
            loss = self._ranks.mean(loss)
        return loss

    def agreed(self, fine: bool) -> bool:  # noqa: FBT001  # the flag is what is agreed on
        """Whether it is fine on all ranks."""
        return self._ranks.all_of(fine)


class SharedDisplacements(CombinedDisplacements):
    """Displacements that all ranks have, each its part, or none."""

    def __init__(self, ring: Ring, budget: WaitBudget, ranks: Ranks) -> None:
        """Combine in this rank's ring."""
        super().__init__(ring, budget)
        self._ranks = ranks

    def of(self, prediction: Prediction) -> Mapping[str, Tensor] | None:
        """The displacement of the parts held here; None where any rank cannot make its own."""
        displacement = super().of(prediction)
        if self._ranks.all_of(displacement is not None):
            return displacement
        self.failure = self.failure or "another rank could not make its part of the displacement"
        return None


class LedTrial(Trial):
    """A trial of the first rank: says what it does before it does it."""

    def __init__(
        self,
        evaluator: Evaluator,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
        displacements: Displacements,
        arena: Arena,
        ranks: Ranks,
    ) -> None:
        """Say it to these ranks."""
        super().__init__(evaluator, optimizer, parameters, displacements, arena)
        self._ranks = ranks
        self._numbers: dict[int, int] = {}

    def loss_now(self) -> float:
        """The loss of the current weights, over all ranks."""
        self._ranks.tell([LOSS, 0, 0, 0, 0, 0, 0])
        return super().loss_now()

    def evaluate(self, prediction: Prediction) -> float:
        """The loss after this jump, over all ranks."""
        self._tell(EVALUATE, prediction)
        return super().evaluate(prediction)

    def keep(self, prediction: Prediction) -> bool:
        """Make the jump for good, on all ranks or on none."""
        self._tell(KEEP, prediction)
        return super().keep(prediction)

    def _tell(self, command: int, prediction: Prediction) -> None:
        """The command, and the prediction's coefficients where it was not spoken of before."""
        known = id(prediction) in self._numbers  # predictions live as long as the search over them
        number = self._numbers.setdefault(id(prediction), len(self._numbers))
        coefficients = prediction.coefficients
        if coefficients is None:
            raise ValueError("a prediction that moves nothing is not tried")
        blocks, velocities = coefficients.velocity.shape
        has_last = coefficients.last is not None
        self._ranks.tell([command, number, coefficients.step, blocks, velocities, has_last, known])
        if not known:
            self._ranks.tell_tensor(torch.from_numpy(coefficients.velocity))
            if coefficients.last is not None:
                self._ranks.tell_tensor(torch.from_numpy(coefficients.last))


class LedAttempts(Attempts):
    """Attempts of the first rank, with the others.

    Attributes:
        together: what the ranks share.
    """

    together: Together

    def _trial(self, displacements: Displacements, arena: Arena) -> Trial:
        reshard(self._evaluator.model)
        self._recorder.hold_writers()
        parameters = self._recorder.parameters()
        return LedTrial(
            self._evaluator, self._optimizer, parameters, displacements, arena, self.together.ranks
        )
