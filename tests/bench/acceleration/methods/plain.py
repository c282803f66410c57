"""The optimizer alone: what all others are compared with."""

from __future__ import annotations

from acceleration.methods.running import Beside, Start

__all__ = ["plain"]


def plain(start: Start) -> Beside:  # every method is given a start
    """Nothing beside training."""
    return Beside()
