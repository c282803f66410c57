"""How honest the predicted error is, and what choosing by the back-test is worth, as Markdown tables.

    python tests/bench/calibration/run.py [--quick] [--plot tests/bench/calibration.png]

18 small networks are trained, three times each, and kept in the cache directory; windows of these runs are
predicted 1 to 64 strides ahead and compared with what training did.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calibration.cases import DEFAULT, Plan, outcomes, tensor_outcomes
from calibration.plot import draw
from calibration.records import default_cache
from calibration.tables import (
    calibration_table,
    decline_table,
    operator_table,
    partition_table,
    selection_table,
)
from calibration.tasks import TASKS

CALIBRATED = (DEFAULT, "rank 4, ridge 1e-4", "rank 8, ridge 1e-6", "back-tested: rank, ridge")
"""Operators of the calibration's table and plot."""
QUICK = (
    "digits, SGD",
    "regression, Adam",
    "oscillator, Adadelta",
    "oscillator, Adam",
    "regression, Adam, batch 64",
    "digits, Adam, batch 64",
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="six tasks, one seed, one window length: a trial"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the reliability plot there")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where training runs are kept")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the tables."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    if arguments.quick:
        plan = Plan(QUICK, 1, (12,), (10,), 12, arguments.cache)
    else:
        plan = Plan(tuple(TASKS), 3, (8, 12, 16), (5, 10), 12, arguments.cache)
    found = list(outcomes(plan))
    calibrated = [one for one in found if one.operator in CALIBRATED]
    print(f"## Calibration: {', '.join(CALIBRATED)}\n\n{calibration_table(calibrated)}\n")
    print(f"## By operator\n\n{operator_table(found)}\n")
    print(f"## Selection\n\n{selection_table(found)}\n")
    print(f"## Declining\n\n{decline_table(found)}\n")
    tensors = list(tensor_outcomes(plan))
    print(f"## A block a tensor\n\n{partition_table(tensors)}")
    if arguments.plot is not None:
        draw(calibrated, arguments.plot)


if __name__ == "__main__":
    main()
