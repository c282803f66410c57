"""Arrays and torch tensors as they are given: what they are, whether a job has them, and their bytes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from koopcast.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["ELEMENT_BYTES", "Bytes", "TensorSpec", "check_tensors", "describe", "flat_bytes", "flat_view"]

ELEMENT_BYTES: Final[Mapping[str, int]] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Supported element types and their width in bytes."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Element type and shape of one tensor, for jobs opened before the arrays exist.

    Attributes:
        dtype: ``"float64"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        shape: sizes of the dimensions, each at least 1; empty for a scalar.
        node_of: for node partitions, name of the matrix whose units this vector's entries belong to, entry i to unit
            i. Empty: found by name, see `koopcast.partition`.
        node_axis: for node partitions, the axis of `shape` that counts the units of a matrix. None: 0.
    """

    dtype: str
    shape: tuple[int, ...]
    node_of: str = ""
    node_axis: int | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return self.elements * ELEMENT_BYTES[self.dtype]


def describe(name: str, array: Any) -> TensorSpec:
    """Element type and shape of a NumPy array, a torch tensor or a TensorSpec, which keeps its units too.

    Raises:
        ArgumentTypeError: something that is no array.
        ArgumentValueError: an element type that koopcast does not take, no elements, or an axis that is not there.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a tensor's name must be a string, not {name!r}", field="tensors")
    if isinstance(array, TensorSpec):
        spec = TensorSpec(array.dtype, tuple(array.shape), array.node_of, array.node_axis)
        _check_units(name, spec)
    elif hasattr(array, "dtype") and hasattr(array, "shape"):
        dtype = getattr(array.dtype, "name", None) or str(array.dtype).removeprefix("torch.")
        spec = TensorSpec(dtype, tuple(int(size) for size in array.shape))
    else:
        raise ArgumentTypeError(
            f"tensor {name!r} must be a NumPy array, a torch tensor or a TensorSpec, not {type(array).__name__}",
            field=name,
        )
    if spec.dtype not in ELEMENT_BYTES:
        allowed = ", ".join(ELEMENT_BYTES)
        raise ArgumentValueError(
            f"tensor {name!r} has dtype {spec.dtype}; koopcast takes {allowed}", field=name, dtype=spec.dtype
        )
    if any(size < 0 for size in spec.shape):
        raise ArgumentValueError(f"tensor {name!r} has a negative dimension: {spec.shape}", field=name)
    if spec.elements == 0:
        raise ArgumentValueError(f"tensor {name!r} of shape {spec.shape} has no elements", field=name)
    return spec


def check_tensors(specs: Mapping[str, TensorSpec], arrays: Mapping[str, Any]) -> None:
    """Compares names, types and shapes of some arrays with a job's.

    Raises:
        ArgumentValueError: a missing or extra tensor, another shape or type than in the spec.
        ArgumentTypeError: something that is no array, or has no values.
    """
    _same_names(specs, arrays)
    for name, spec in specs.items():
        array = arrays[name]
        if isinstance(array, TensorSpec):
            raise ArgumentTypeError(f"tensor {name!r}: a spec holds no values to push", field=name)
        _same_kind(name, spec, describe(name, array))


def flat_bytes(name: str, array: Any) -> Bytes:
    """The bytes of an array or a torch tensor as they travel. A view where they lie so in memory, else a copy."""
    view = flat_view(array)
    if view is not None:
        return view
    torch: Any = sys.modules.get("torch")
    dense = array.detach().cpu().contiguous() if _is_torch(array, torch) else np.ascontiguousarray(array)
    if isinstance(dense, np.ndarray) and dense.dtype.name != "bfloat16":
        dense = dense.astype(dense.dtype.newbyteorder("<"), copy=False)
    view = flat_view(dense)
    if view is None:
        raise ArgumentTypeError(f"tensor {name!r} cannot be read as an array", field=name)
    return view


def flat_view(array: Any) -> Bytes | None:
    """The memory of a dense little-endian array, or torch tensor on the CPU, as bytes; None of any other."""
    torch: Any = sys.modules.get("torch")
    if _is_torch(array, torch):
        if array.device.type != "cpu" or not array.is_contiguous():
            return None
        bits: npt.NDArray[Any] = array.detach().reshape(-1).view(torch.uint8).numpy()
        return bits
    if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        return None
    order = array.dtype.byteorder
    is_big = order == ">" or (order == "=" and sys.byteorder == "big")
    return None if is_big else array.reshape(-1).view(np.uint8)


def _is_torch(array: Any, torch: Any) -> bool:
    return torch is not None and isinstance(array, torch.Tensor)


def _check_units(name: str, spec: TensorSpec) -> None:
    if not isinstance(spec.node_of, str):
        raise ArgumentTypeError(f"tensor {name!r}: node_of must be a name, not {spec.node_of!r}", field=name)
    axis = spec.node_axis
    if axis is None:
        return
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise ArgumentTypeError(f"tensor {name!r}: node_axis must be an axis, not {axis!r}", field=name)
    if not 0 <= axis < len(spec.shape):
        raise ArgumentValueError(
            f"tensor {name!r} of shape {spec.shape} has no axis {axis} (node_axis)", field=name
        )


def _same_names(specs: Mapping[str, TensorSpec], arrays: Mapping[str, Any]) -> None:
    missing = [name for name in specs if name not in arrays]
    extra = [name for name in arrays if name not in specs]
    if missing or extra:
        parts = [f"missing {', '.join(map(repr, missing[:5]))}"] if missing else []
        parts += [f"not in the job {', '.join(map(repr, extra[:5]))}"] if extra else []
        raise ArgumentValueError(
            f"the snapshot's tensors are not the job's: {'; '.join(parts)}",
            field=(missing or extra)[0],
            missing=len(missing),
            extra=len(extra),
        )


def _same_kind(name: str, spec: TensorSpec, given: TensorSpec) -> None:
    if given.shape != spec.shape:
        raise ArgumentValueError(
            f"tensor {name!r} has shape {given.shape}; the job was opened with {spec.shape}",
            field=name,
            given=given.shape,
            expected=spec.shape,
        )
    if given.dtype != spec.dtype:
        raise ArgumentValueError(
            f"tensor {name!r} has dtype {given.dtype}; the job was opened with {spec.dtype}",
            field=name,
            given=given.dtype,
            expected=spec.dtype,
        )
