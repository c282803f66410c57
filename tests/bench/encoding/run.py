"""What fewer bytes cost: predictions and jumps when snapshots and answers are narrowed, as Markdown tables.

    python tests/bench/encoding/run.py [--seeds 0 1 2] [--quick]

Everything goes through a service process on this machine, as a trainer's snapshots would.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

import koopcast
from encoding.foretelling import error_table, outcomes, traffic_table
from encoding.jumps import jump_table
from encoding.speed import speed_table
from services import running_service


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="one seed: a trial")
    arguments = parser.parse_args()
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    torch.set_num_threads(1)
    with running_service() as service, koopcast.connect(service.target) as client:
        print(f"## Time\n\n{speed_table(client)}\n", flush=True)
        found, traffic = outcomes(client, seeds)
        print(f"## Bytes\n\n{traffic_table(traffic)}\n")
        print(f"## Errors of predictions\n\n{error_table(found)}\n", flush=True)
        print("## Jumps\n")
        for line in jump_table(service.target, seeds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
