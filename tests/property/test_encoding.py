"""Whatever the differences, an encoding loses no more than it says, and both sides add up the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from koopcast.encoding import BLOCK_ELEMENTS, DifferenceCode, advance

Floats = npt.NDArray[np.floating[Any]]

LARGEST = float(np.finfo(np.float32).max)
RELATIVE_ERROR = {"float64": 0.0, "float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half a unit in the last place of each type; bfloat16's first becomes float32, which may round twice."""
SMALLEST_STEP = {"float64": 0.0, "float32": 2.0**-149, "bfloat16": 2.0**-133, "float16": 2.0**-24}

STORED = st.sampled_from(["float32", "float64"])
WIRE = st.sampled_from(sorted(RELATIVE_ERROR))
LENGTHS = st.sampled_from(
    [1, 2, BLOCK_ELEMENTS - 1, BLOCK_ELEMENTS, BLOCK_ELEMENTS + 1, 3 * BLOCK_ELEMENTS + 7]
)
CODES = st.builds(DifferenceCode, st.sampled_from(["delta", "delta-int8"]), WIRE, STORED, LENGTHS)


def values_of(code: DifferenceCode, largest: float = LARGEST) -> st.SearchStrategy[Floats]:
    """Finite arrays for a code, of all sizes of numbers at once."""
    width = 32 if code.storage_dtype == "float32" else 64
    elements = st.floats(-largest, largest, width=width)  # type: ignore[arg-type]
    return arrays_of.arrays(np.dtype(code.storage_dtype), code.elements, elements=elements, fill=elements)


def relative_values(code: DifferenceCode, seed: int, size: float) -> Floats:
    """Differences as training makes them: bell-shaped, each tensor's of its own size."""
    generator = np.random.default_rng(seed)
    sizes = size * 10.0 ** generator.uniform(-3, 0, -(-code.elements // 100)).repeat(100)[: code.elements]
    return (generator.standard_normal(code.elements) * sizes).astype(code.storage_dtype)


@given(CODES, st.data())
@settings(deadline=None)
def test_a_delta_is_as_close_as_its_type_allows(code: DifferenceCode, data: st.DataObject) -> None:
    differences = data.draw(values_of(code))
    decoded = code.decode(code.encode(differences))
    assert decoded.dtype == differences.dtype
    if code.encoding == "delta":
        largest = min(LARGEST, {"float16": 65504.0, "bfloat16": 3.3895e38}.get(code.wire_dtype, LARGEST))
        wanted = np.clip(differences.astype(np.float64), -largest, largest)
        allowed = RELATIVE_ERROR[code.wire_dtype] * np.abs(wanted) + SMALLEST_STEP[code.wire_dtype]
    else:
        wanted = differences.astype(np.float64)
        padded = np.pad(wanted, (0, -len(wanted) % BLOCK_ELEMENTS)).reshape(-1, BLOCK_ELEMENTS)
        scales = np.abs(padded).max(1) / 127
        # Half a scale, and the rounding of the scale itself: to float32, or to its smallest numbers.
        allowed = (scales * (0.5 + 1e-4) + 128 * 2.0**-149).repeat(BLOCK_ELEMENTS)[: len(wanted)]
    found = np.clip(decoded.astype(np.float64), -LARGEST, LARGEST)  # `advance` clips what is infinite here
    assert (np.abs(found - wanted) <= allowed).all()


@given(CODES, st.data())
@settings(deadline=None)
def test_sizes_are_what_the_code_says(code: DifferenceCode, data: st.DataObject) -> None:
    assert len(code.encode(np.zeros(code.elements, code.storage_dtype))) == code.nbytes
    assert code.elements_of(0, code.nbytes) == (0, code.elements)
    start = data.draw(st.integers(-3, code.nbytes + 3))
    stop = data.draw(st.integers(-3, code.nbytes + 3))
    found = code.elements_of(start, stop)
    if found is None:
        return
    first, last = found
    assert 0 <= first < last <= code.elements
    assert len(code.encode(np.zeros(last - first, code.storage_dtype))) == stop - start


@given(st.sampled_from(["delta", "delta-int8"]), WIRE, STORED, st.integers(1, 3 << 20), st.data())
@settings(deadline=None)
def test_chunks_partition_the_bytes_and_the_elements(
    encoding: Any, wire: str, stored: str, elements: int, data: st.DataObject
) -> None:
    code = DifferenceCode(encoding, wire, stored, elements)
    ranges = list(code.ranges())
    byte = element = 0
    for start, stop in ranges:
        assert start == byte
        assert 1 <= stop - start <= 1 << 20
        found = code.elements_of(start, stop)
        assert found is not None
        assert found[0] == element
        byte, element = stop, found[1]
    assert (byte, element) == (code.nbytes, elements)
    begin = data.draw(st.integers(0, len(ranges) - 1))
    assert list(code.ranges(ranges[begin][0])) == ranges[begin:]


@given(CODES, st.integers(0, 2**32), st.data())
@settings(deadline=None)
def test_how_a_snapshot_is_cut_changes_nothing(code: DifferenceCode, seed: int, data: st.DataObject) -> None:
    differences = relative_values(code, seed, 1.0)
    whole = code.decode(code.encode(differences))
    cut = data.draw(st.integers(0, code.elements // BLOCK_ELEMENTS)) * BLOCK_ELEMENTS
    parts = [code.decode(code.encode(part)) for part in (differences[:cut], differences[cut:]) if len(part)]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@given(CODES, st.integers(0, 2**32))
@settings(deadline=None, max_examples=30)
def test_what_one_push_loses_the_next_one_brings(code: DifferenceCode, seed: int) -> None:
    weights = relative_values(code, seed, 1.0)
    held = weights.copy()
    worst = 0.0
    for push in range(60):
        step = relative_values(code, seed + 1 + push, 1e-3)
        weights += step
        differences = weights - held
        advance(held, code.decode(code.encode(differences)), held)
        worst = max(worst, float(np.abs(differences).max()))
        # Never more than one push loses: half a scale of the largest block, or half an ulp of bfloat16 or float16
        # (whose smallest number is 2**-24), and half an ulp of the weights where the difference is added.
        rounding = float(np.spacing(np.abs(held).max())) / 2
        assert np.abs(weights - held).max() <= worst / 253 + 2.0**-25 + rounding
    assert worst <= 1e-2  # nor do differences grow


@given(CODES, st.data())
@settings(deadline=None)
def test_finite_references_stay_finite(code: DifferenceCode, data: st.DataObject) -> None:
    reference, target = data.draw(values_of(code)), data.draw(values_of(code))
    with np.errstate(over="ignore"):
        differences = target - reference
    out = np.empty_like(reference)
    advance(reference, code.decode(code.encode(differences)), out)
    assert np.isfinite(out).all()


@given(CODES, st.binary(max_size=2000))
@settings(deadline=None)
def test_bytes_from_anybody_are_decoded_or_told_to_be_no_numbers(code: DifferenceCode, data: bytes) -> None:
    data = (data * (code.nbytes // max(1, len(data)) + 1) + bytes(code.nbytes))[: code.nbytes]
    bad = code.first_non_finite(data)
    decoded = code.decode(data)
    assert len(decoded) == code.elements
    if bad is None:
        out = np.empty_like(decoded)
        advance(np.ones_like(decoded), decoded, out)
        assert np.isfinite(out).all()
    else:
        assert 0 <= bad < code.elements
        assert not np.isfinite(decoded[bad])


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-43, 1e-38, 3e38, np.inf])
def test_blocks_of_zeros_tiny_and_huge_numbers_have_a_scale(largest: float) -> None:
    code = DifferenceCode("delta-int8", "float32", "float32", BLOCK_ELEMENTS + 3)
    differences = np.zeros(code.elements, np.float32)
    differences[[1, -1]] = largest, -largest
    data = code.encode(differences)
    assert code.first_non_finite(data) is None
    out = np.empty_like(differences)
    advance(np.zeros_like(differences), code.decode(data), out)
    wanted = np.float32(min(largest, LARGEST))
    assert abs(out[1] - wanted) <= max(wanted * 1e-6, 100e-45)
    assert out[-1] == -out[1]
    assert not out[[0, 2, BLOCK_ELEMENTS]].any()
