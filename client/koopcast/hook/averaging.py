"""Averaged weights for evaluation: where gradients are noisy, the mean of the last weights is better than the last ones.

The weights of a noisy training go to and fro about the path they follow, by the more the higher the learning rate. An
average over the last steps takes most of that away, as a lower learning rate would, and training goes on undisturbed with
the weights it has. It is never trained on: a trainer that continued from its own average would have gained nothing some
steps later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from koopcast.hook.memory import TensorMemory
from koopcast.hook.selection import Selection
from koopcast.hook.sharding import local, reshard

__all__ = ["EvaluationAverage", "decay_at"]

_LOG = logging.getLogger("koopcast")

DECAY_PER_STEP: Final = 0.97
"""Weight of the past in the average, for each optimizer step: it reaches back 1 / (1 - 0.97) = 33 steps, the mean age."""
UPDATE_STEPS: Final = 4
"""Steps between two updates. Weights that are so close in time say nearly the same, and each costs a pass over all."""
FEWEST_STEPS: Final = 20
"""Steps an average must have seen before it is used."""
LOWEST_RATE: Final = 0.25
"""Share of the largest learning rate so far below which the average is not used: noise falls with the rate, and what is
left of the average is its lag."""
_DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LOOK_UP_STEPS: Final = 64
"""Steps after which parameters are looked up by name again: another object may have taken a parameter's place."""


def decay_at(steps: int) -> float:
    """Weight of the past per step, `steps` steps after the average began: smaller at first, so that its start fades."""
    return min(DECAY_PER_STEP, (1 + steps) / (10 + steps))


class EvaluationAverage:
    """Exponential moving average of the parameters that take part and of floating-point buffers, beside a training run.

    Kept where the weights live, in float32 at least, of sharded parameters the part that is here. It begins at the
    weights after the next step, and anew after each `begin`. Takes memory only while training is known to be noisy. Where
    it fails, as for want of memory, there is none any more, and one warning.

    Attributes:
        noisy: whether training is; None: not known. Whoever knows writes it here.
        steps: steps since the average began.
    """

    def __init__(self, model: nn.Module, selection: Selection, *, strict: bool = False) -> None:
        """Average these parameters of the model, from the time it is known that it helps; `strict`: failures raise."""
        self.noisy: bool | None = None
        self.steps = 0
        self._model = model
        self._selection = selection
        self._strict = strict
        self._ended = False
        self._rate: float | None = None
        self._largest_rate = 0.0
        self._tensors: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}
        self._groups: list[tuple[list[Tensor], list[Tensor]]] = []

    def step(self, rate: float | None) -> None:
        """After every optimizer step; `rate`: its learning rate, None where it is not known."""
        self._rate = rate
        if rate is not None:
            self._largest_rate = max(self._largest_rate, rate)
        if not self.noisy or self._ended:
            if self._averages:
                self.begin()
            return
        try:
            self._count_in()
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer
            self._fail(error)

    def begin(self) -> None:
        """Weights were moved by other means than training: forget the average, and begin one after the next step."""
        self.steps = 0
        self._tensors = {}
        self._averages = {}
        self._groups = []

    def end(self) -> None:
        """No average from now on: the steps to come are not counted in."""
        self._ended = True
        self.begin()

    @property
    def helps(self) -> bool:
        """Whether the average is to be preferred to the weights."""
        if not self.noisy or self.steps < FEWEST_STEPS:
            return False
        return self._rate is None or self._rate >= LOWEST_RATE * self._largest_rate

    def show(self, hold_writers: Callable[[], None]) -> TensorMemory | None:
        """Give the model the averages, where they help; what to give to `hide`. None: the model has its own weights.

        Args:
            hold_writers: called before anything writes to the weights.
        """
        if not self.helps:
            return None
        try:
            return self._shown(hold_writers)
        except Exception as error:  # noqa: BLE001  # the border that protects the trainer
            self._fail(error)
            return None

    def hide(self, before: TensorMemory, hold_writers: Callable[[], None]) -> None:
        """Give the model its old bits back: parameters that were averaged, and all buffers."""
        reshard(self._model)  # FSDP2 may still hold what it gathered of the averages
        hold_writers()
        before.restore()

    def _count_in(self) -> None:
        if self.steps % _LOOK_UP_STEPS == 0:
            self._look_up()
        self.steps += 1
        if self.steps == 1:
            self._averages = {name: _copy(local(tensor)) for name, tensor in self._tensors.items()}
        elif self.steps % UPDATE_STEPS == 0:
            self._update(1.0 - decay_at(self.steps) ** UPDATE_STEPS)

    def _shown(self, hold_writers: Callable[[], None]) -> TensorMemory | None:
        averages = self._usable()
        if not averages:
            return None
        before = (
            TensorMemory()
        )  # not all of the model: what is trained beside large frozen weights may be little
        for tensor in [*(self._tensors[name] for name in averages), *self._model.buffers()]:
            before.remember(tensor)
        try:
            hold_writers()
            with torch.no_grad():
                for name, average in averages.items():
                    alias = local(
                        self._tensors[name]
                    ).data  # its version stays: graphs that are alive stay valid
                    alias.copy_(average)
        except Exception:
            before.restore()
            raise
        return before

    def _fail(self, error: Exception) -> None:
        self.end()
        if self._strict:
            raise error
        _LOG.warning("koopcast goes on without averaged weights for evaluation: %r", error)

    def _update(self, share: float) -> None:
        """Move the averages by this share of the way to the weights."""
        with torch.no_grad():
            for averages, tensors in self._grouped():
                weights = [local(tensor) for tensor in tensors]
                dtype = averages[0].dtype
                if any(weight.dtype != dtype for weight in weights):
                    weights = [weight.to(dtype) for weight in weights]
                torch._foreach_lerp_(averages, weights, share)

    def _grouped(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """Averages and what they are of, those of one dtype and device together; found anew after each look-up."""
        if not self._groups:
            groups: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = {}
            for name, average in self._averages.items():
                averages, tensors = groups.setdefault((average.dtype, average.device), ([], []))
                averages.append(average)
                tensors.append(self._tensors[name])
            self._groups = list(groups.values())
        return self._groups

    def _usable(self) -> Mapping[str, Tensor]:
        """The averages to show: none where parameters were replaced since, or one has no finite average.

        A buffer that was replaced, or has no finite average, such as a mask of infinities, stays as it is.
        """
        self._look_up()
        names = list(self._averages)
        if not names:
            return {}
        finite = torch.stack([one.isfinite().all().cpu() for one in self._averages.values()]).tolist()
        bad = {name for name, fine in zip(names, finite, strict=True) if not fine}
        if any(isinstance(self._tensors[name], nn.Parameter) for name in bad):
            return {}
        return {name: average for name, average in self._averages.items() if name not in bad}

    def _look_up(self) -> None:
        """Find everything by name again. Other parameters mean another average, other buffers have none."""
        found: dict[str, Tensor] = dict(self._selection.parameters())
        replaced = [name for name, parameter in found.items() if self._tensors.get(name) is not parameter]
        if replaced and self._averages:
            self.begin()
        found |= {name: buffer for name, buffer in self._model.named_buffers() if buffer.dtype in _DTYPES}
        for name in list(self._averages):
            if found.get(name) is not self._tensors[name]:
                del self._averages[name]
        self._tensors = found
        self._groups = []


def _copy(tensor: Tensor) -> Tensor:
    """A copy in float32 at least: an average in half precision would stand still."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.detach().to(torch.float32 if half else tensor.dtype, copy=True)
