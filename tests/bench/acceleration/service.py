"""A real koopcast service in a process of its own, on a Unix socket, with one thread to compute on."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Final

import numpy as np

import koopcast
from services import running_service

__all__ = ["ONE_THREAD", "local_service"]

ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""Environment of processes that compute with one thread."""


@contextlib.contextmanager
def local_service() -> Iterator[str]:
    """Gives its address; it has answered once before. Stopped after the block.

    Raises:
        RuntimeError: it did not start; the message has what it said.
    """
    with (
        tempfile.TemporaryDirectory(prefix="koopcast-bench-") as folder,
        running_service(
            "--listen",
            f"unix:{folder}/service",
            "--workers",
            "1",
            "--threads",
            "1",
            environment=ONE_THREAD,
        ) as service,
    ):
        _warm_up(service.target)
        yield service.target


def _warm_up(target: str) -> None:
    """Ask for something: the first answer of a service's life takes longer than the others."""
    generator = np.random.default_rng(0)
    with koopcast.connect(target) as client:
        job = client.open_job(
            "warm-up",
            {"w": koopcast.TensorSpec("float32", (1000,))},
            stride=1,
            operator=koopcast.Operator(window=10),
        )
        for step in range(1, 11):
            job.push(step, {"w": (0.9**step + 1e-3 * generator.standard_normal(1000)).astype(np.float32)})
        job.predict_ahead(
            [4, 16], operators=[koopcast.Operator(window=10, rank=4), koopcast.Operator(window=10, rank=8)]
        )
        job.close()
