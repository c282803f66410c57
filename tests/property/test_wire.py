"""Whatever tensors a job has, packing and chunking lose nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from koopcast.wire import ELEMENT_BYTES, Layout, TensorSpec, checksum, combine

SPECS = st.lists(
    st.builds(
        TensorSpec,
        st.sampled_from(sorted(ELEMENT_BYTES)),
        st.lists(st.integers(1, 40), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=8,
).map(lambda specs: {f"t{index}": spec for index, spec in enumerate(specs)})


@given(SPECS)
@settings(deadline=None)
def test_runs_partition_the_bytes_and_the_elements(specs: dict[str, TensorSpec]) -> None:
    layout = Layout(specs)
    assert layout.nbytes == sum(spec.nbytes for spec in specs.values())
    assert sum(run.elements for run in layout.runs) == layout.elements
    byte, element = 0, 0
    for run in layout.runs:
        assert (run.first_byte, run.first_element) == (byte, element)
        byte, element = run.end_byte, element + run.elements
    assert byte == layout.nbytes


@given(SPECS, st.data())
@settings(deadline=None)
def test_a_range_is_taken_if_and_only_if_it_holds_whole_elements_of_one_type(
    specs: dict[str, TensorSpec], data: st.DataObject
) -> None:
    layout = Layout(specs)
    first = data.draw(st.integers(0, layout.nbytes - 1))
    count = data.draw(st.integers(1, layout.nbytes - first))
    element_bounds, types = [0], []
    for spec in specs.values():
        for _ in range(spec.elements):
            element_bounds.append(element_bounds[-1] + ELEMENT_BYTES[spec.dtype])
            types.append(spec.dtype)
    whole = first in element_bounds and first + count in element_bounds
    inside = types[element_bounds.index(first) : element_bounds.index(first + count)] if whole else []
    run = layout.run_of(first, count)
    assert (run is not None) == (len(set(inside)) == 1)


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 3000))
@settings(deadline=None)
def test_checksums_of_stretches_combine(one: bytes, other: bytes, repeats: int) -> None:
    long = other * repeats
    assert combine(checksum(one), checksum(long), len(long)) == checksum(one + long)


@given(SPECS, st.integers(1, 8), st.data())
@settings(deadline=None)
def test_chunks_from_any_border_are_the_rest_of_them(
    specs: dict[str, TensorSpec], eights: int, data: st.DataObject
) -> None:
    layout = Layout(specs)
    ranges = list(layout.chunk_ranges(0, 8 * eights))
    index = data.draw(st.integers(0, len(ranges) - 1))
    assert list(layout.chunk_ranges(ranges[index][0], 8 * eights)) == ranges[index:]
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges)][:-1]
    assert ranges[-1][1] == layout.nbytes
    assert all(layout.run_of(start, stop - start) for start, stop in ranges)
