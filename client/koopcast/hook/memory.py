"""Remembers a model, its optimizer and the random states, to put every bit of them back after a probe."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from koopcast.hook.shadow import ShadowState
from koopcast.hook.sharding import local

__all__ = ["Arena", "RandomStates", "TensorMemory", "TrainerMemory", "stir", "weights_of"]

_ALIGNMENT: Final = 64
"""Copies begin at multiples of this. Unit: bytes."""
_SMALLEST: Final = 1024
"""Copies that are smaller are made elsewhere. Unit: bytes."""


class Arena:
    """Host memory lent for copies, so that an attempt needs less of its own: snapshot buffers that are idle then.

    Copies made in it are lost when it is given back.
    """

    def __init__(self, blocks: Sequence[Tensor] = (), give_back: Callable[[], None] | None = None) -> None:
        """Lend `blocks` (1-d, uint8, on the CPU) until `release`, which calls `give_back`."""
        self._blocks = [(block, 0) for block in blocks]
        self._give_back = give_back

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor: in lent memory where it is a plain one on the CPU and there is room, else in new."""
        tensor = tensor.detach()
        fits = tensor.device.type == "cpu" and tensor.layout == torch.strided and type(tensor) is Tensor
        if fits and tensor.nbytes >= _SMALLEST:  # small ones would push large ones out
            for index, (block, used) in enumerate(self._blocks):
                if used + tensor.nbytes <= block.numel():
                    place = block[used : used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                    end = used + tensor.nbytes
                    self._blocks[index] = (block, end + -end % _ALIGNMENT)
                    return place.copy_(tensor)
        return tensor.clone()

    def release(self) -> None:
        """Give the memory back; does nothing the second time."""
        give_back, self._give_back, self._blocks = self._give_back, None, []
        if give_back is not None:
            give_back()


class TensorMemory:
    """Contents of tensors, and of the lists and dicts that hold them, by identity.

    Values go back through ``.data``: what autograd saved of a tensor is valid again with the old bits, so the
    tensor's version must not move.
    """

    def __init__(self, arena: Arena | None = None, *, besides: TensorMemory | None = None) -> None:
        """Remember nothing yet; never what `besides` remembers. Copies are made in `arena`."""
        self._arena = arena if arena is not None else Arena()
        self._seen: set[int] = set() if besides is None else besides.seen()
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
            here = local(value)
            self._tensors[id(value)] = (value, here.data, self._arena.copy(here))
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

    def seen(self) -> set[int]:
        """Identities of all that is remembered."""
        return set(self._seen)

    def copy_of(self, tensor: Tensor) -> Tensor | None:
        """The remembered contents of a tensor, of a sharded one of its part here; None where it is not remembered."""
        found = self._tensors.get(id(tensor))
        return None if found is None else found[2]

    def restore(self) -> None:
        """Put everything back: the same objects, the same bits."""
        for mapping, items in self._dicts:
            if not (_alike(mapping, items) and _alike(mapping.values(), items.values())):
                mapping.clear()
                mapping.update(items)
        for sequence, elements in self._lists:
            if not _alike(sequence, elements):
                sequence[:] = elements
        for tensor, alias, copy in self._tensors.values():
            alias.copy_(copy)
            if local(tensor).data_ptr() != alias.data_ptr():
                tensor.data = alias


def weights_of(model: nn.Module, arena: Arena | None = None) -> TensorMemory:
    """Remembers parameters and buffers."""
    memory = TensorMemory(arena)
    for tensor in [*model.parameters(), *model.buffers()]:
        memory.remember(tensor)
    return memory


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


def stir() -> None:
    """Make the global random generators give other numbers than those to come; `RandomStates` undoes it."""
    seed = int(torch.randint(1 << 31, ()))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the global generator, which training loops use
    torch.default_generator.manual_seed(seed)
    if _cuda_in_use():  # else torch would keep the seed for when it is
        torch.cuda.manual_seed_all(seed)


class TrainerMemory:
    """Everything a probe may touch: parameters, buffers, gradients, modes, optimizer state, random states.

    Gradients are not copied: they are taken off the parameters while a probe runs (`hide`), so that one that calls
    ``backward`` makes new ones, and put back as the same objects, None included. Nor is the state of torch's own
    optimizers: a probe gets a `ShadowState` instead. That of others, which may know it by other ways, is copied.

    Attributes:
        weights: parameters and buffers.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, arena: Arena | None = None
    ) -> None:
        """Remember everything as it is now. Takes one copy of parameters and buffers, in `arena`."""
        self._optimizer = optimizer
        self._state, self._groups = optimizer.state, optimizer.param_groups
        self._shadowed = type(optimizer).__module__.startswith("torch.optim.")
        self.weights = weights_of(model, arena)
        self._holders = TensorMemory(arena, besides=self.weights)
        self._modes: list[tuple[nn.Module, bool]] = []
        for module in model.modules():
            self._modes.append((module, module.training))
            self._holders.remember(module._parameters)  # noqa: SLF001  # the dicts themselves, to undo what is
            self._holders.remember(module._buffers)  # noqa: SLF001  # added, removed or replaced in them
        self._holders.remember(self._groups)
        if not self._shadowed:
            self._holders.remember(self._state)
        parameters = {id(p): p for p in [*model.parameters(), *_grouped(optimizer)]}.values()
        self._gradients = [(p, p.grad, p.requires_grad) for p in parameters]
        self._random = RandomStates()

    def hide(self) -> None:
        """Take the gradients off the parameters, and the state out of the optimizer's hands."""
        for parameter, _, _ in self._gradients:
            parameter.grad = None
        if self._shadowed:
            self._optimizer.state = ShadowState(self._state)  # type: ignore[assignment]  # read as the dict it is

    def restore(self) -> None:
        """Put everything back."""
        self._optimizer.state, self._optimizer.param_groups = self._state, self._groups
        self._holders.restore()
        self.weights.restore()
        for parameter, gradient, requires_grad in self._gradients:
            parameter.grad = gradient
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
        for module, training in self._modes:
            module.training = training
        self._random.restore()


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch lacks the annotation


def _grouped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    groups: list[dict[str, Any]] = optimizer.param_groups
    return [parameter for group in groups for parameter in group["params"]]


def _alike(one: Collection[Any], other: Collection[Any]) -> bool:
    """Whether both hold the same objects in the same order."""
    return len(one) == len(other) and all(map(operator.is_, one, other))
