"""What the client makes of an answer's messages, whole or broken."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import pytest

import koopcast
from koopcast.answers import AnswerReader, Message, Sources
from koopcast.codec import decode_answer, encode_chunk
from koopcast.v1 import prediction_pb2, tensor_pb2
from koopcast.wire import Layout, TensorSpec, checksum

LAYOUT = Layout({"a": TensorSpec("float32", (2, 3)), "b": TensorSpec("float32", (4,))})
VALUES = np.arange(10, dtype=np.float32)


def elsewhere(report: prediction_pb2.PredictionReport) -> NoReturn:
    raise AssertionError("nothing is to be fetched")


def begun(**told: Any) -> Message:
    settings = {"moved": True, "total_bytes": 40, "dtype": tensor_pb2.ELEMENT_TYPE_FLOAT32, **told}
    report = prediction_pb2.PredictionReport(prediction_id="p", base_step=7, segment=1, **settings)
    return prediction_pb2.PredictAheadResponse(report=report)


def base(total_bytes: int = 40) -> Message:
    told = prediction_pb2.BaseSnapshot(step=7, total_bytes=total_bytes, dtype=tensor_pb2.ELEMENT_TYPE_FLOAT32)
    return prediction_pb2.PredictAheadResponse(base=told)


def chunk(offset: int, data: bytes, change: int = 0) -> Message:
    return decode_answer(encode_chunk(offset, data, checksum(data) ^ change))


def chunks(values: np.ndarray, *cuts: int) -> list[Message]:
    data = values.tobytes()
    return [chunk(start, data[start:stop]) for start, stop in pairwise([0, *cuts, len(data)])]


def read(messages: Iterable[Message], *, prepared: str = "") -> list[koopcast.Prediction]:
    reader = AnswerReader(LAYOUT)
    if prepared:
        reader.prepare(prepared)
    return reader.read(messages, Sources(elsewhere))


@pytest.mark.parametrize("prepared", ["", "float32", "float64"])
def test_an_answer_is_put_together(prepared: str) -> None:
    messages = [base(), *chunks(VALUES, 16), begun(), *chunks(VALUES + 1, 4, 8, 36), begun(moved=False)]
    first, second = read(messages, prepared=prepared)
    assert list(first.displacement) == ["a", "b"]
    np.testing.assert_array_equal(first.displacement["a"], (VALUES[:6] + 1).reshape(2, 3))
    np.testing.assert_array_equal(first.weights["b"], 2 * VALUES[6:] + 1)
    np.testing.assert_array_equal(second.displacement["b"], np.zeros(4, np.float32))
    np.testing.assert_array_equal(second.weights["b"], VALUES[6:])


def test_half_precision_is_widened_chunk_by_chunk() -> None:
    bits = (VALUES.view(np.uint32) >> 16).astype("<u2")
    answer = begun(total_bytes=20, dtype=tensor_pb2.ELEMENT_TYPE_BFLOAT16)
    (prediction,) = read([answer, *chunks(bits, 2, 12)], prepared="bfloat16")
    assert prediction.displacement["b"].dtype == np.float32
    np.testing.assert_array_equal(prediction.displacement["b"], VALUES[6:])


@pytest.mark.parametrize(
    "broken",
    [
        [chunk(4, VALUES.tobytes()[4:])],
        [chunk(0, VALUES.tobytes()[:16]), chunk(20, VALUES.tobytes()[20:])],
        [chunk(0, VALUES.tobytes()[:16]), chunk(0, VALUES.tobytes()[:16])],
        [chunk(0, VALUES.tobytes() + bytes(4))],
        [chunk(0, VALUES.tobytes()[:6]), chunk(6, VALUES.tobytes()[6:])],
        [chunk(0, VALUES.tobytes(), change=1)],
    ],
    ids=["begins late", "gap", "twice", "too long", "half an element", "changed"],
)
def test_chunks_that_do_not_fit_are_a_loss_of_data(broken: list[Message]) -> None:
    with pytest.raises(koopcast.DataLoss):
        read([begun(), *broken])


@pytest.mark.parametrize("total_bytes", [0, 36, 44, 2**63])
def test_another_size_than_the_jobs_is_refused_before_there_is_memory_for_it(total_bytes: int) -> None:
    for message in (begun(total_bytes=total_bytes), base(total_bytes)):
        with pytest.raises(koopcast.InternalError) as caught:
            read([message])
        assert caught.value.reason == "WRONG_ANSWER"


def test_an_answer_that_ends_early_is_told_of() -> None:
    with pytest.raises(koopcast.InternalError):
        read([begun(), *chunks(VALUES, 16)[:1]])


def test_a_base_can_be_read_alone() -> None:
    reader = AnswerReader(LAYOUT)
    alone = [base(), *chunks(VALUES, 16), begun(total_bytes=0)]
    np.testing.assert_array_equal(reader.read_base(alone)["b"], VALUES[6:])
    assert reader.bytes_received == 40
    for broken in ([begun(), *chunks(VALUES)], [base(), *chunks(VALUES, 16)[:1]]):
        with pytest.raises(koopcast.InternalError):
            AnswerReader(LAYOUT).read_base(broken)


def test_displacements_of_reports_alone_are_fetched_each_time_they_are_looked_at() -> None:
    asked = []

    def fetch(report: prediction_pb2.PredictionReport) -> dict[str, np.ndarray]:
        asked.append(report.prediction_id)
        return LAYOUT.split(VALUES)

    reader = AnswerReader(LAYOUT)
    moved, still = reader.read(
        [begun(total_bytes=0), begun(total_bytes=0, moved=False)], Sources(elsewhere, fetch)
    )
    assert asked == []
    np.testing.assert_array_equal(moved.displacement["b"], VALUES[6:])
    np.testing.assert_array_equal(moved.displacement["b"], VALUES[6:])
    assert asked == ["p", "p"]
    assert not still.displacement["b"].any()
