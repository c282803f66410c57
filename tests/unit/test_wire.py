"""The layout of a snapshot on the wire: packing, runs, chunks, element types."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import koopcast
from koopcast.wire import CHUNK_BYTES, Layout, TensorSpec, checksum, describe, narrow, storage_dtype, widen

MIXED = {
    "a": TensorSpec("bfloat16", (3, 5)),
    "b": TensorSpec("bfloat16", (2,)),
    "c": TensorSpec("float16", (1,)),
    "d": TensorSpec("float64", (7,)),
    "e": TensorSpec("float32", ()),
}


def test_neighbours_of_one_type_form_a_run() -> None:
    layout = Layout(MIXED)
    assert [(run.dtype, run.first_byte, run.first_element, run.elements) for run in layout.runs] == [
        ("bfloat16", 0, 0, 17),
        ("float16", 34, 17, 1),
        ("float64", 36, 18, 7),
        ("float32", 92, 25, 1),
    ]
    assert (layout.elements, layout.nbytes) == (26, 96)


@pytest.mark.parametrize(
    ("first", "count", "dtype"),
    [(0, 34, "bfloat16"), (2, 2, "bfloat16"), (36, 8, "float64"), (84, 8, "float64"), (92, 4, "float32")],
)
def test_a_range_of_whole_elements_lies_in_its_run(first: int, count: int, dtype: str) -> None:
    run = Layout(MIXED).run_of(first, count)
    assert run is not None
    assert run.dtype == dtype


@pytest.mark.parametrize(
    ("first", "count"), [(1, 2), (0, 3), (32, 4), (36, 4), (40, 8), (92, 8), (96, 4), (0, 0)]
)
def test_a_range_that_splits_an_element_or_crosses_runs_lies_in_none(first: int, count: int) -> None:
    assert Layout(MIXED).run_of(first, count) is None


def test_chunks_cover_everything_in_order_and_never_cross_a_run() -> None:
    layout = Layout({"a": TensorSpec("float16", (CHUNK_BYTES + 3,)), "b": TensorSpec("float64", (200_000,))})
    ranges = list(layout.chunk_ranges())
    assert ranges[0][0] == 0
    assert ranges[-1][1] == layout.nbytes
    assert all(stop == start for (_, stop), (start, _) in pairwise(ranges))
    assert all(0 < stop - start <= CHUNK_BYTES for start, stop in ranges)
    assert all(layout.run_of(start, stop - start) is not None for start, stop in ranges)


def test_elements_are_named() -> None:
    layout = Layout(MIXED)
    assert [layout.name_at(index) for index in (0, 14, 15, 16, 17, 18, 24, 25)] == list("aabbcdde")


def test_what_is_packed_is_unpacked() -> None:
    arrays = {name: torch.randn(spec.shape).to(getattr(torch, spec.dtype)) for name, spec in MIXED.items()}
    layout = Layout({name: describe(name, array) for name, array in arrays.items()})
    unpacked = layout.split(layout.unpack(layout.pack(arrays), "float64"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(unpacked[name], array.double().numpy())


def test_arrays_of_any_memory_order_are_packed_row_major() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    swapped = array.astype(">f8")
    layout = Layout({"x": describe("x", array)})
    expected = np.arange(6.0).tobytes()
    assert layout.pack({"x": array}).tobytes() == expected
    assert layout.pack({"x": array[:, ::-1][:, ::-1]}).tobytes() == expected
    assert Layout({"x": TensorSpec("float64", (2, 3))}).pack({"x": swapped}).tobytes() == expected


def test_a_tensor_that_requires_gradients_is_packed() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    assert Layout({"x": describe("x", parameter)}).pack({"x": parameter}).view(np.float32).tolist() == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_narrowing_rounds_as_torch_does(dtype: str) -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate(
        [
            generator.standard_normal(5000) * 10.0 ** generator.integers(-3, 4, 5000),
            [0.0, -0.0, 1.00390625, 65000.0],
        ]
    ).astype(np.float32)
    expected = torch.from_numpy(values).to(getattr(torch, dtype))
    given = widen(narrow(values, dtype), dtype)
    np.testing.assert_array_equal(given.astype(np.float64), expected.double().numpy())


def test_narrowing_keeps_what_is_not_finite_and_overflows_to_infinity() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 3.4028235e38], np.float32)
    given = widen(narrow(values, "bfloat16"), "bfloat16")
    assert np.isnan(given[0])
    assert given[1:].tolist() == [np.inf, -np.inf, np.inf]


def test_storage_is_the_widest_type_and_never_half() -> None:
    assert storage_dtype(["bfloat16", "float16"]) == "float32"
    assert storage_dtype(["bfloat16", "float64"]) == "float64"


def test_crc32c_is_castagnoli() -> None:
    assert checksum(b"123456789") == 0xE3069283
    assert checksum(b"6789", checksum(b"12345")) == 0xE3069283


@pytest.mark.parametrize("bad", [[1.0], "text", None, 3.0])
def test_what_is_no_array_is_refused(bad: object) -> None:
    with pytest.raises(koopcast.ArgumentTypeError, match="'x' must be a NumPy array"):
        describe("x", bad)


def test_an_empty_tensor_is_refused() -> None:
    with pytest.raises(koopcast.ArgumentValueError, match="no elements"):
        describe("x", np.empty((3, 0), np.float32))
