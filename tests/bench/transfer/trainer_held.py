"""What a jump costs where the trainer holds the window, beside one whose snapshots travel, in the same run.

    python tests/bench/transfer/trainer_held.py [--parameters N ...] [--blocks N ...] [--json FILE] [--table]

Bytes are of serialised messages (trainer-held) and of tensor data (at the service), as `Job.bytes_sent` and
`bytes_received` count them, for one window of 12 snapshots and one question of 3 operators and 4 horizons. Both jobs get
the same snapshots, on one machine. `--table` writes the table into README.md beside this file.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import koopcast
from koopcast.window.held import TrainerWindow
from recording import machine, nice_seconds, table, write_into, write_record
from services import running_service

README: Final = Path(__file__).with_name("README.md")
SNAPSHOTS: Final = 12
HORIZONS: Final = (4.0, 16.0, 64.0, 256.0)
OPERATORS: Final = tuple(
    koopcast.Operator(rank=rank, ridge=ridge) for rank, ridge in ((2, 1e-3), (4, 1e-4), (8, 1e-6))
)
TIMED: Final = ("publish", "row", "push", "coefficients", "combine", "ask")
P = ParamSpec("P")
R = TypeVar("R")


def timed(seconds: list[float], call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The call's result; its time is added to `seconds`."""
    begun = time.perf_counter()
    result = call(*args, **kwargs)
    seconds.append(time.perf_counter() - begun)
    return result


def path(parameters: int) -> Callable[[int], np.ndarray[Any, np.dtype[np.float32]]]:
    """Snapshots of two decaying modes and a little noise."""
    random = np.random.default_rng(0)
    fixed, first, second = (random.standard_normal(parameters, np.float32) for _ in range(3))

    def at(index: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        noise = np.random.default_rng(index).standard_normal(parameters, np.float32)
        found: np.ndarray[Any, np.dtype[np.float32]] = (
            fixed + 0.97**index * first + 0.8**index * second + 1e-4 * noise
        )
        return found.astype(np.float32)

    return at


def measure(target: str, parameters: int, blocks: int) -> dict[str, Any]:
    """One model: `blocks` tensors of equal size, one operator each."""
    size = parameters // blocks
    specs = {f"layers.{index}.weight": koopcast.TensorSpec("float32", (size,)) for index in range(blocks)}
    operator = koopcast.Operator(partition="network" if blocks == 1 else "tensor", window=SNAPSHOTS)
    at = path(size * blocks)
    times: dict[str, list[float]] = {name: [] for name in TIMED}
    with koopcast.connect(target, timeout_seconds=600) as client:
        window = TrainerWindow(specs, operator)
        options: dict[str, Any] = {"stride": 1, "operator": operator}
        held = client.open_job("held", specs, window_holder="trainer", **options)
        served = client.open_job("served", specs, **options)
        for step in range(SNAPSHOTS):
            snapshot = at(step)
            window.spare.copy_(torch.from_numpy(snapshot))
            row = timed(times["publish"], window.publish, step)
            timed(times["row"], held.push_gram_row, step, row)
            arrays = {name: snapshot[index * size : (index + 1) * size] for index, name in enumerate(specs)}
            timed(times["push"], served.push, step, arrays)
        ours = timed(times["coefficients"], held.predict_coefficients, HORIZONS, operators=OPERATORS)
        theirs = timed(times["ask"], served.predict_ahead, HORIZONS, operators=OPERATORS)
        worst, out = 0.0, torch.empty(size * blocks)
        for one, other in zip(ours, theirs, strict=True):
            if one.coefficients is not None:
                timed(times["combine"], window.combine, one.coefficients, out)
                true = np.concatenate([part.ravel() for part in other.displacement.values()])
                worst = max(worst, float(np.linalg.norm(out.numpy() - true) / np.linalg.norm(true)))
        measured = {
            "parameters": size * blocks,
            "blocks": blocks,
            "held_bytes": held.bytes_sent + held.bytes_received,
            "row_bytes": held.bytes_sent / SNAPSHOTS,
            "answer_bytes": held.bytes_received / len(ours),
            "served_bytes": served.bytes_sent + served.bytes_received,
            "memory_at_service": held.memory_bytes,
            "difference": worst,
            **{f"{name}_seconds": float(np.median(found)) for name, found in times.items()},
        }
        held.close()
        served.close()
    return measured


def markdown(models: list[dict[str, Any]]) -> str:
    """One line a model."""
    head = (
        "parameters",
        "blocks",
        "bytes a jump",
        "of them a row / an answer",
        "bytes where snapshots travel",
        "service's memory",
        "publish + row",
        "push",
        "coefficients + 1 combination",
        "12 displacements",
        "largest difference",
    )
    rows = [
        (
            f"{found['parameters']:,}",
            f"{found['blocks']:,}",
            f"{found['held_bytes']:,}",
            f"{found['row_bytes']:,.0f} / {found['answer_bytes']:,.0f}",
            f"{found['served_bytes']:,}",
            f"{found['memory_at_service']:,}",
            f"{nice_seconds(found['publish_seconds'])} + {nice_seconds(found['row_seconds'])}",
            nice_seconds(found["push_seconds"]),
            f"{nice_seconds(found['coefficients_seconds'])} + {nice_seconds(found['combine_seconds'])}",
            nice_seconds(found["ask_seconds"]),
            f"{found['difference']:.0e}",
        )
        for found in models
    ]
    return table(head, rows)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parameters", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000, 50_000_000]
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 100])
    parser.add_argument("--json", type=Path, help="write what was measured here")
    parser.add_argument("--table", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    where = machine("torch", "grpcio", "protobuf")
    torch.set_num_threads(1)
    with running_service("--http", "off", "--memory-limit", "8GiB") as service:
        models = [
            measure(service.target, count, blocks)
            for count in options.parameters
            for blocks in options.blocks
        ]
    text = f"{markdown(models)}\n\nMeasured on {where}."
    print(text)
    write_record(options.json, {"machine": where, "models": models})
    if options.table:
        write_into(README, "trainer-held", text)


if __name__ == "__main__":
    main()
