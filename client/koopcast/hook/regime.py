"""Whether training is deterministic or noisy, as far as it is known: what may be done for it depends on that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

__all__ = ["DETERMINISTIC_AGREEMENT", "WORTHWHILE_PREDICTABILITY", "Regime", "tells_noise"]

DETERMINISTIC_AGREEMENT: Final = 0.999
"""From here on the probe's loss is taken for the training loss itself. Below, training is noisy: early gradients of a
minibatch point almost where those of all data do (0.995 was seen), and later ones do not."""
WORTHWHILE_PREDICTABILITY: Final = 0.5
"""Below, less than half of what came was foretold: jumps do not pay. Where a probe gives no gradient, training is taken for noisy."""


@dataclass(slots=True)
class Regime:
    """What is known of the noise in training.

    Attributes:
        agreement: cosine between the gradients of the probe's loss and of the training step at the same weights; None:
            not known, e.g. since there is no probe, or one that returns plain numbers.
        predictability: share of the coming displacement that the operator foretells, from the back-test; None: no
            answer yet.
        probed: whether there is a probe, and steps that its gradient can be compared with. Without them nothing but the
            index tells, and a low one may also be that of a rough path without noise, of which averages would only lag.
    """

    agreement: float | None = None
    predictability: float | None = None
    probed: bool = True

    @property
    def deterministic(self) -> bool:
        """Whether the probe is known to be the training loss."""
        return self.agreement is not None and self.agreement >= DETERMINISTIC_AGREEMENT

    @property
    def noisy(self) -> bool | None:
        """Whether training is noisy; None: not known yet."""
        if self.agreement is not None:
            return not self.deterministic
        if self.probed and self.predictability is not None:
            return self.predictability < WORTHWHILE_PREDICTABILITY
        return None


def tells_noise(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the gradients it leaves are of the weights that its step began with: those of a line search are not."""
    return not isinstance(optimizer, torch.optim.LBFGS)
