"""The trainer's side: `attach` a PyTorch training loop to the service. Importing it loads torch."""

from __future__ import annotations

from koopcast.hook.ahead import Ahead
from koopcast.hook.attaching import attach
from koopcast.hook.stats import JumpEvent, Stats

__all__ = ["Ahead", "JumpEvent", "Stats", "attach"]
