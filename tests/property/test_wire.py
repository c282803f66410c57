"""Whatever tensors a job has, packing and chunking lose nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from koopcast.wire import ELEMENT_BYTES, Layout, TensorSpec

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
