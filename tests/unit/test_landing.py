"""Differences that land in a window: the device adds up what `koopcast.encoding.advance` does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from koopcast.encoding import DifferenceCode, EncodingName, advance
from koopcast.operator import Operator
from koopcast.wire import Layout, TensorSpec, checksum
from koopcast_server.held_window import HeldWindow
from koopcast_server.window_shape import JobShape

ELEMENTS = 1003
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("stored", ["float32", "float64"])
@pytest.mark.parametrize(
    ("encoding", "wire"), [("delta", "bfloat16"), ("delta", "float32"), ("delta-int8", "float32")]
)
def test_a_window_holds_the_bits_that_the_trainer_counts_on(
    device: str, stored: str, encoding: EncodingName, wire: str
) -> None:
    layout = Layout({"w": TensorSpec(stored, (ELEMENTS,))})
    shape = JobShape.of(layout, Operator(window=3), 1, stored)
    window = HeldWindow(shape, torch.device(device))
    code = DifferenceCode.of(layout, encoding, wire)
    assert code is not None
    generator = np.random.default_rng(0)
    largest = np.finfo(stored).max
    held = (generator.standard_normal(ELEMENTS) * 10.0 ** generator.uniform(-40, 37, ELEMENTS)).astype(stored)
    held[:2] = largest, -largest
    window.land(0, held.tobytes(), checksum(held.tobytes()))
    window.publish(starts_segment=True)
    for _ in range(4):
        change = (held * generator.uniform(-1, 1, ELEMENTS)).astype(stored)
        data = code.encode(change).tobytes()
        window.land(0, data, checksum(data), code)
        window.publish(starts_segment=False)
        advance(held, code.decode(data), held)
        assert window.base().numpy().tobytes() == held.tobytes()
