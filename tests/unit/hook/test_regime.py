"""What is known of the noise, from the agreement of gradients or else from what was foretold."""

from __future__ import annotations

import pytest

from koopcast.hook.regime import Regime


@pytest.mark.parametrize(
    ("agreement", "predictability", "deterministic", "noisy"),
    [
        (None, None, False, None),
        (None, 0.49, False, True),
        (None, 0.5, False, False),
        (None, 1.0, False, False),  # foretold well, but that does not make the probe's loss the training loss
        (0.999, None, True, False),
        (0.995, None, False, True),
        (1.0000001, 0.0, True, False),  # gradients are the better witness
        (0.98, 1.0, False, True),
        (0.0, None, False, True),
        (-1.0, 1.0, False, True),
    ],
)
def test_the_regime(
    agreement: float | None, predictability: float | None, noisy: bool | None, *, deterministic: bool
) -> None:
    regime = Regime(agreement, predictability)
    assert regime.deterministic is deterministic
    assert regime.noisy is noisy


def test_without_a_probe_a_low_index_says_nothing_of_noise() -> None:
    assert Regime(predictability=0.0, probed=False).noisy is None
    assert Regime(agreement=0.5, probed=False).noisy
