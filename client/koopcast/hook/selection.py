"""Which parameters take part, and the copies of them that travel: buffers, averages."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.hook.units import Units, unit_specs
from koopcast.wire import TensorSpec

__all__ = ["Averager", "BufferPool", "Filter", "Selection", "SnapshotBuffer", "WeightsChangedError"]

Filter = Callable[[str, nn.Parameter], bool]
"""(name, parameter) to whether it takes part."""

_DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class WeightsChangedError(RuntimeError):
    """The model has other parameters than when the hook was attached."""


class Selection:
    """The parameters that take part: chosen by name when attached, looked up by name ever after.

    Attributes:
        specs: name to shape, units, and the type in which snapshots travel (averages of half precision: float32).
    """

    def __init__(self, model: nn.Module, chosen: Filter | None, *, averaged: bool) -> None:
        """Choose; tied parameters count once, under their first name.

        Raises:
            ArgumentValueError: nothing is left to predict, or a parameter has no shape yet, or is sharded.
        """
        self._model = model
        self._kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}
        for name, parameter in model.named_parameters():
            if _takes_part(name, parameter, chosen):
                self._kinds[name] = (parameter.dtype, parameter.shape)
        if not self._kinds:
            raise ArgumentValueError(
                "no parameter of the model takes part: the default filter passes floating-point parameters "
                "(float64, float32, bfloat16, float16) that require gradients",
                field="filter",
            )
        units = unit_specs(model)
        self.specs = {
            name: self._spec(name, units.get(name, Units()), averaged=averaged) for name in self._kinds
        }

    @property
    def on_gpu(self) -> bool:
        """Whether any of the parameters lives on a CUDA device."""
        return any(parameter.is_cuda for parameter in self.parameters().values())

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters as the model has them now.

        Raises:
            WeightsChangedError: one is missing, or has another type or shape.
        """
        found = dict(self._model.named_parameters())
        for name, (dtype, shape) in self._kinds.items():
            parameter = found.get(name)
            if parameter is None or parameter.dtype != dtype or parameter.shape != shape:
                raise WeightsChangedError(
                    f"parameter {name!r} was {dtype} {tuple(shape)} when koopcast was attached and is gone or "
                    "different now; close and attach again"
                )
        return {name: found[name] for name in self._kinds}

    def _spec(self, name: str, units: Units, *, averaged: bool) -> TensorSpec:
        dtype, shape = self._kinds[name]
        travels = str(_travel_dtype(dtype, averaged=averaged)).removeprefix("torch.")
        # A matrix that takes no part has no units that a vector could join.
        node_of = units.node_of if units.node_of in self._kinds else ""
        return TensorSpec(travels, tuple(shape), node_of, units.node_axis)


class SnapshotBuffer:
    """A copy of the parameters in host memory, pinned where they live on a GPU."""

    def __init__(self, specs: Mapping[str, TensorSpec], *, pinned: bool) -> None:
        """Allocate."""
        self.tensors: dict[str, Tensor] = {
            name: torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), pin_memory=pinned)
            for name, spec in specs.items()
        }
        self._copied: list[torch.cuda.Event] = []

    def fill(self, sources: Mapping[str, Tensor]) -> None:
        """Begin to copy; on a GPU behind the work already queued on its current stream."""
        for name, target in self.tensors.items():
            target.copy_(sources[name].detach(), non_blocking=True)
        self._copied = []
        for device in {source.device for source in sources.values() if source.is_cuda}:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch lacks the annotation
            event.record(torch.cuda.current_stream(device))
            self._copied.append(event)

    def wait(self) -> None:
        """Return when the copy is done."""
        for event in self._copied:
            event.synchronize()


class BufferPool:
    """A fixed number of snapshot buffers: the bound on how far the service may lag behind."""

    def __init__(self, specs: Mapping[str, TensorSpec], depth: int, *, pinned: bool) -> None:
        """Allocate `depth` buffers."""
        self._free: queue.Queue[SnapshotBuffer] = queue.Queue()
        for _ in range(depth):
            self._free.put(SnapshotBuffer(specs, pinned=pinned))

    def take(self, timeout_seconds: float) -> SnapshotBuffer | None:
        """A free buffer; None where none comes free in time."""
        try:
            return self._free.get(timeout=timeout_seconds) if timeout_seconds > 0 else self._free.get_nowait()
        except queue.Empty:
            return None

    def give(self, buffer: SnapshotBuffer) -> None:
        """Return a buffer."""
        self._free.put(buffer)


class Averager:
    """The mean of the weights over the steps since the last reset, kept where the parameters live.

    Attributes:
        steps: weights averaged so far.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.steps = 0
        self._means: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget the steps so far."""
        self.steps = 0

    def add(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Count the weights as they are now in."""
        self.steps += 1
        with torch.no_grad():
            if self.steps == 1:
                for name, weights in parameters.items():
                    self._mean_like(name, weights).copy_(weights)
            else:
                means = [self._means[name] for name in parameters]
                for mean, group in _by_kind(means, list(parameters.values())):
                    torch._foreach_lerp_(mean, group, 1.0 / self.steps)

    def means(self) -> Mapping[str, Tensor]:
        """The means, by name. Valid until the next `add`."""
        return self._means

    def _mean_like(self, name: str, weights: Tensor) -> Tensor:
        mean = self._means.get(name)
        if mean is None or mean.shape != weights.shape or mean.device != weights.device:
            dtype = _travel_dtype(weights.dtype, averaged=True)
            mean = self._means[name] = torch.empty_like(weights, dtype=dtype, requires_grad=False)
        return mean


def _by_kind(means: list[Tensor], weights: list[nn.Parameter]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Pairs of lists of one type and device each, the weights widened to the type of their means."""
    groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
    for mean, weight in zip(means, weights, strict=True):
        pair = groups.setdefault((mean.dtype, mean.device), ([], []))
        pair[0].append(mean)
        pair[1].append(weight.detach().to(mean.dtype))
    yield from groups.values()


def _takes_part(name: str, parameter: nn.Parameter, chosen: Filter | None) -> bool:
    if is_lazy(parameter):
        raise ArgumentValueError(
            f"parameter {name!r} has no shape yet: run a forward pass before attach", field=name
        )
    if not (parameter.requires_grad if chosen is None else chosen(name, parameter)):
        return False
    if parameter.dtype not in _DTYPES or parameter.numel() == 0:
        return False
    if hasattr(parameter, "device_mesh"):
        raise ArgumentTypeError(
            f"parameter {name!r} is sharded (a DTensor); koopcast takes whole ones", field=name
        )
    return True


def _travel_dtype(dtype: torch.dtype, *, averaged: bool) -> torch.dtype:
    return torch.float32 if averaged and dtype in (torch.bfloat16, torch.float16) else dtype
