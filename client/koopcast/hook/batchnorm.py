"""Recomputes BatchNorm's running statistics, which belong to the weights before a jump."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from koopcast.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["update_bn"]


def update_bn(
    batches: Iterable[Any], *, momentum: float | None = None, device: torch.device | str | None = None
) -> Callable[[nn.Module], None]:
    """An `on_jump` for `attach` that recomputes the running statistics of all BatchNorm layers on `batches`.

    As `torch.optim.swa_utils.update_bn`: the statistics are reset, the model sees every batch once in training mode
    and without gradients, and the modes are put back. A model without BatchNorm layers is left alone. Every batch
    counts as a step where evaluations are counted.

    Args:
        batches: inputs of the model, or tuples and lists that begin with them; gone through once a candidate, so no
            iterator: a list, or a data loader that gives the same every time.
        momentum: of the running statistics meanwhile; None: their plain average over the batches.
        device: moves the inputs there first; None: they are where the model needs them.

    Raises:
        ArgumentTypeError, ArgumentValueError: `batches` can be gone through only once; `momentum` outside 0..1.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        raise ArgumentTypeError(
            "batches must be something to go through many times, like a list or a data loader, not "
            f"{type(batches).__name__}",
            field="batches",
        )
    if momentum is not None and not 0.0 <= momentum <= 1.0:
        raise ArgumentValueError(f"momentum must lie in 0..1 or be None, not {momentum}", field="momentum")

    def on_jump(model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        if not layers:
            return
        modes = [(module, module.training) for module in model.modules()]
        momenta = [(layer, layer.momentum) for layer in layers]
        try:
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = momentum
            model.train()
            with torch.no_grad():
                for batch in batches:
                    model(_inputs(batch, device))
        finally:
            for layer, before in momenta:
                layer.momentum = before
            for module, training in modes:
                module.training = training

    return on_jump


def _inputs(batch: Any, device: torch.device | str | None) -> Any:
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    return inputs.to(device) if device is not None and isinstance(inputs, Tensor) else inputs
