"""What the trainer remembers in order to push differences."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from koopcast.delta import DeltaPayload, Differences, FlatArrays, Sent
from koopcast.encoding import DifferenceCode, EncodingName, advance
from koopcast.errors import ArgumentValueError
from koopcast.payload import RawPayload
from koopcast.wire import Layout, checksum, describe

CODES: list[tuple[EncodingName, str]] = [
    ("delta", "bfloat16"),
    ("delta", "float16"),
    ("delta", "float32"),
    ("delta-int8", "float32"),
]


def tensors(seed: int = 0, size: float = 1.0) -> dict[str, Any]:
    """Three runs, of three element types; the middle one is longer than a chunk."""
    generator = np.random.default_rng(seed)
    return {
        "half": (size * generator.standard_normal((3, 50))).astype(np.float16),
        "long": (size * generator.standard_normal((700, 901))).astype(np.float32),
        "short": (size * generator.standard_normal(7)).astype(np.float32),
        "brain": torch.from_numpy(size * generator.standard_normal((5, 129))).to(torch.bfloat16),
    }


def flat(layout: Layout, arrays: dict[str, Any]) -> FlatArrays:
    return FlatArrays(layout, RawPayload(layout, arrays))


def sent(layout: Layout, arrays: dict[str, Any], raw_crc: int = 0, digest: bytes = b"") -> Sent:
    return Sent(flat(layout, arrays), raw_crc, digest)


def layout_of(arrays: dict[str, Any]) -> Layout:
    return Layout({name: describe(name, array) for name, array in arrays.items()})


def elements(arrays: dict[str, Any]) -> npt.NDArray[np.float32]:
    parts = [torch.as_tensor(array).float().numpy().reshape(-1) for array in arrays.values()]
    return np.concatenate(parts)


def landed(payload: DeltaPayload, code: DifferenceCode, held: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a service makes of the snapshot it holds when these bytes come in."""
    found = np.empty_like(held)
    for start, stop in payload.ranges(0):
        data = bytes(payload.read(start, stop))
        range_ = code.elements_of(start, stop)
        assert range_ is not None
        here = slice(*range_)
        advance(held[here], code.decode(data), found[here])
    return found


def wire_bytes(payload: DeltaPayload) -> bytes:
    return b"".join(bytes(payload.read(start, stop)) for start, stop in payload.ranges(0))


@pytest.mark.parametrize(("first", "last"), [(0, 1), (149, 151), (100, 900), (0, 631502), (631_500, 631_502)])
def test_elements_are_read_across_tensors_and_types(first: int, last: int) -> None:
    arrays = tensors()
    found = flat(layout_of(arrays), arrays).read(first, last)
    assert found.dtype == np.float32
    assert found.tobytes() == elements(arrays)[first:last].tobytes()


def test_an_inspection_gives_the_checksum_of_the_raw_bytes() -> None:
    arrays = tensors()
    layout = layout_of(arrays)
    assert flat(layout, arrays).inspect() == checksum(layout.pack(arrays))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("name", "index"), [("half", 149), ("long", 500_000), ("brain", 3)])
def test_values_that_are_not_finite_are_refused_by_name(name: str, index: int, bad: float) -> None:
    arrays = tensors()
    arrays[name].reshape(-1)[index] = bad
    with pytest.raises(ArgumentValueError, match=f"'{name}' holds {bad} at flat index {index}") as caught:
        flat(layout_of(arrays), arrays).inspect()
    assert caught.value.reason == "NON_FINITE"
    assert caught.value.details["field"] == name


@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_both_sides_hold_the_same_bits_and_errors_do_not_add_up(encoding: EncodingName, wire: str) -> None:
    arrays = tensors()
    layout = layout_of(arrays)
    code = DifferenceCode.of(layout, encoding, wire)
    assert code is not None
    differences = Differences(layout, code)
    assert differences.payload(flat(layout, arrays)) is None  # the first snapshot goes raw
    differences.note_held((1, 0), sent(layout, arrays), None)
    held = elements(arrays)
    for step in range(1, 6):
        arrays = {
            name: array + change
            for (name, array), change in zip(arrays.items(), tensors(step, 1e-2).values(), strict=True)
        }
        payload = differences.payload(flat(layout, arrays))
        assert payload is not None
        assert payload.reference == (1, step - 1)
        assert payload.nbytes == code.nbytes
        held = landed(payload, code, held)
        differences.note_held((1, step), sent(layout, arrays), payload)
        base = differences.base()
        assert base is not None
        assert base.tobytes() == held.tobytes()
        assert np.abs(held - elements(arrays)).max() < 4e-4


@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_the_same_push_makes_the_same_bytes_until_it_is_accepted(encoding: EncodingName, wire: str) -> None:
    first, second = tensors(0), tensors(1)
    layout = layout_of(first)
    code = DifferenceCode.of(layout, encoding, wire)
    assert code is not None
    differences = Differences(layout, code)
    differences.note_held((1, 0), sent(layout, first), None)
    payload, again = differences.payload(flat(layout, second)), differences.payload(flat(layout, second))
    assert payload is not None
    assert again is not None
    made = wire_bytes(payload)
    assert wire_bytes(payload) == made == wire_bytes(again)
    resumed = list(payload.ranges(list(payload.ranges(0))[-1][0]))
    assert bytes(payload.read(*resumed[0])) == made[resumed[0][0] :]
    differences.note_held((1, 1), sent(layout, second), payload)
    assert wire_bytes(again) != made


def test_a_reference_goes_forward_only_and_can_be_lost() -> None:
    first, second = tensors(0), tensors(1)
    layout = layout_of(first)
    differences = Differences(layout, DifferenceCode("delta-int8", "float32", "float32", layout.elements))
    assert differences.base() is None
    differences.note_held((2, 10), sent(layout, second), None)
    differences.note_held((1, 90), sent(layout, first), None)
    differences.note_held((2, 10), sent(layout, first), None)
    base = differences.base()
    assert base is not None
    assert base.tobytes() == elements(second).tobytes()
    assert differences.stands_for == (2, 10)
    differences.forget()
    assert differences.payload(flat(layout, first)) is None
    assert differences.base() is None
    differences.note_held((2, 10), sent(layout, first), None)
    assert differences.stands_for == (2, 10)


def test_what_was_sent_of_a_step_is_remembered() -> None:
    arrays = tensors()
    layout = layout_of(arrays)
    differences = Differences(layout, DifferenceCode("delta", "bfloat16", "float32", layout.elements))
    differences.note_held((1, 0), sent(layout, arrays, 7, b"sent"), None)
    assert differences.digest_of((1, 0), 7) == b"sent"
    assert differences.digest_of((1, 0), 8) is None
    assert differences.digest_of((1, 1), 7) is None
    differences.note_held((1, 1), sent(layout, arrays, 8, b"next"), None)
    assert differences.digest_of((1, 0), 7) == b"sent"
    assert differences.digest_of((1, 1), 8) == b"next"


@pytest.mark.parametrize(("encoding", "wire"), CODES)
def test_a_push_needs_the_reference_and_little_more(encoding: EncodingName, wire: str) -> None:
    arrays = {"w": np.ones(4 << 20, np.float32)}
    layout = layout_of(arrays)
    code = DifferenceCode.of(layout, encoding, wire)
    assert code is not None
    differences = Differences(layout, code)
    tracemalloc.start()
    try:
        differences.note_held((1, 0), sent(layout, arrays), None)
        payload = differences.payload(flat(layout, arrays))
        assert payload is not None
        for start, stop in payload.ranges(0):
            payload.read(start, stop)
        differences.note_held((1, 1), sent(layout, arrays), payload)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 16 << 20 < peak < 20 << 20
