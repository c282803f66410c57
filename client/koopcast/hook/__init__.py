"""The trainer's side: `attach` a PyTorch training loop to the service. Importing it loads torch."""

from __future__ import annotations

from koopcast.hook.ahead import Ahead
from koopcast.hook.attaching import attach
from koopcast.hook.batchnorm import update_bn
from koopcast.hook.stats import JumpEvent, RateChange, Stats

__all__ = ["Ahead", "JumpEvent", "RateChange", "Stats", "attach", "update_bn"]
