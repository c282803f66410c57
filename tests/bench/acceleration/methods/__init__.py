"""What training is run with: nothing, the methods of others in their published form, and koopcast."""

from collections.abc import Mapping
from typing import Final

from acceleration.methods.averages import ema, lawa
from acceleration.methods.lbfgs import lbfgs
from acceleration.methods.lines import linear, linear_mask
from acceleration.methods.nodes import nodes
from acceleration.methods.ours import ours, ours_no_probe
from acceleration.methods.outer import lookahead, snoo
from acceleration.methods.pdt import pdt
from acceleration.methods.plain import plain
from acceleration.methods.running import Method, Running, Start

__all__ = ["METHODS", "Method", "Running", "Start"]

METHODS: Final[Mapping[str, Method]] = {
    "plain": plain,
    "lbfgs": lbfgs,
    "ema": ema,
    "lawa": lawa,
    "lookahead": lookahead,
    "snoo": snoo,
    "linear": linear,
    "linear-mask": linear_mask,
    "nodes": nodes,
    "pdt": pdt,
    "ours": ours,
    "ours-no-probe": ours_no_probe,
}
"""By name. Each has one setting for all tasks."""
