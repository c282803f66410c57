"""Remembers a model, its optimizer and the random states, to put every bit of them back after a probe."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["RandomStates", "TensorMemory", "TrainerMemory"]


class TensorMemory:
    """Contents of tensors, and of the lists and dicts that hold them, by identity.

    Values go back through ``.data``: what autograd saved of a tensor is valid again with the old bits, so the
    tensor's version must not move.
    """

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._seen: set[int] = set()
        self._tensors: dict[
            int, tuple[Tensor, Tensor, Tensor]
        ] = {}  # itself, an alias of its storage, a copy
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []

    def remember(self, value: Any) -> None:
        """Copy the tensors in `value`; dicts, lists and tuples are entered."""
        if id(value) in self._seen or value is None:
            return
        if isinstance(value, Tensor):
            self._seen.add(id(value))
            self._tensors[id(value)] = (value, value.data, value.detach().clone())
        elif isinstance(value, dict):
            self._seen.add(id(value))
            self._dicts.append((value, dict(value)))
            for item in value.values():
                self.remember(item)
        elif isinstance(value, list):
            self._seen.add(id(value))
            self._lists.append((value, list(value)))
            for item in value:
                self.remember(item)
        elif isinstance(value, tuple):
            for item in value:
                self.remember(item)

    def copy_of(self, tensor: Tensor) -> Tensor:
        """The remembered contents of a tensor."""
        return self._tensors[id(tensor)][2]

    def restore(self) -> None:
        """Put everything back: the same objects, the same bits."""
        for mapping, items in self._dicts:
            if _identities(mapping) != _identities(items):
                mapping.clear()
                mapping.update(items)
        for sequence, elements in self._lists:
            if list(map(id, sequence)) != list(map(id, elements)):
                sequence[:] = elements
        for tensor, alias, copy in self._tensors.values():
            alias.copy_(copy)
            if tensor.data_ptr() != alias.data_ptr():
                tensor.data = alias


class RandomStates:
    """States of Python's, NumPy's and torch's global random generators, CUDA's included where it is in use."""

    def __init__(self) -> None:
        """Remember the states as they are now."""
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002  # the global generator, which training loops use
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if _cuda_in_use() else None

    def restore(self) -> None:
        """Put the states back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


class TrainerMemory:
    """Everything a probe may touch: parameters, buffers, gradients, modes, optimizer state, random states.

    Gradients are not copied: they are taken off the parameters while a probe runs (`hide_gradients`), so that one
    that calls ``backward`` makes new ones, and put back as the same objects, None included.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Remember everything as it is now. Takes one copy of parameters, buffers and optimizer state."""
        self._optimizer = optimizer
        self._state, self._groups = optimizer.state, optimizer.param_groups
        self._memory = TensorMemory()
        self._modes: list[tuple[nn.Module, bool]] = []
        for module in model.modules():
            self._modes.append((module, module.training))
            self._memory.remember(module._parameters)  # noqa: SLF001  # the dicts themselves, to undo what is
            self._memory.remember(module._buffers)  # noqa: SLF001  # added, removed or replaced in them
        for tensor in [*model.parameters(), *model.buffers()]:  # of modules that keep no plain dicts of them
            self._memory.remember(tensor)
        self._memory.remember(self._groups)
        self._memory.remember(self._state)
        parameters = {id(p): p for p in [*model.parameters(), *_grouped(optimizer)]}.values()
        self._gradients = [(p, p.grad, p.requires_grad) for p in parameters]
        self._random = RandomStates()

    def hide_gradients(self) -> None:
        """Take the gradients off the parameters."""
        for parameter, _, _ in self._gradients:
            parameter.grad = None

    def restore(self) -> None:
        """Put everything back."""
        self._optimizer.state, self._optimizer.param_groups = self._state, self._groups
        self._memory.restore()
        for parameter, gradient, requires_grad in self._gradients:
            parameter.grad = gradient
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for module, training in self._modes:
            module.training = training
        self._random.restore()

    def copy_of(self, tensor: Tensor) -> Tensor:
        """The remembered contents of a parameter or buffer."""
        return self._memory.copy_of(tensor)


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch lacks the annotation


def _grouped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    return [parameter for group in groups for parameter in group["params"]]


def _identities(mapping: dict[Any, Any]) -> list[tuple[int, int]]:
    return [(id(key), id(value)) for key, value in mapping.items()]
