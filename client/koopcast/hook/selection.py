"""Which parameters take part, and the running mean of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from koopcast.errors import ArgumentValueError
from koopcast.hook.sharding import is_sharded, local, reshard
from koopcast.hook.units import Units, unit_specs
from koopcast.wire import TensorSpec

__all__ = ["Averager", "Filter", "Selection", "WeightsChangedError"]

Filter = Callable[[str, nn.Parameter], bool]
"""(name, parameter) to whether it takes part."""

_DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class WeightsChangedError(RuntimeError):
    """The model has other parameters than when the hook was attached."""


class Selection:
    """The parameters that take part: chosen by name when attached, looked up by name ever after.

    Attributes:
        sharded: whether any is a DTensor, of which only a part is here.
        specs: name to whole shape, units, and the type in which snapshots travel (averages of half precision: float32).
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: Filter | None,
        *,
        averaged: bool,
        trained: Collection[Tensor] | None = None,
    ) -> None:
        """Choose; tied parameters count once, under their first name.

        Args:
            model: whose parameters.
            chosen: says which; None: those that require gradients and are `trained`.
            averaged: whether means of them travel.
            trained: the optimizer's parameters; None: all are.

        Raises:
            ArgumentValueError: nothing is left to predict, or a parameter has no shape yet.
        """
        self._model = model
        self._kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}
        self.sharded = False
        optimized = None if trained is None else {id(parameter) for parameter in trained}
        for name, parameter in model.named_parameters():
            if chosen is None and optimized is not None and id(parameter) not in optimized:
                continue
            if _takes_part(name, parameter, chosen):
                self._kinds[name] = (parameter.dtype, parameter.shape)
                self.sharded = self.sharded or is_sharded(parameter)
        if not self._kinds:
            raise ArgumentValueError(
                "no parameter of the model takes part: the default filter passes floating-point parameters "
                "(float64, float32, bfloat16, float16) that require gradients and belong to the optimizer",
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
        if self.sharded:
            reshard(self._model)
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
        """Count the weights as they are now in; of sharded ones, the parts that are here."""
        self.steps += 1
        with torch.no_grad():
            here = {name: local(parameter) for name, parameter in parameters.items()}
            if self.steps == 1:
                for name, weights in here.items():
                    self._mean_like(name, weights).copy_(weights)
            else:
                means = [self._means[name] for name in here]
                for mean, group in _by_kind(means, list(here.values())):
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


def _by_kind(means: list[Tensor], weights: list[Tensor]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
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
    return parameter.dtype in _DTYPES and parameter.numel() > 0


def _travel_dtype(dtype: torch.dtype, *, averaged: bool) -> torch.dtype:
    return torch.float32 if averaged and dtype in (torch.bfloat16, torch.float16) else dtype
