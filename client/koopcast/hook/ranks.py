"""The ranks of a job under torch.distributed: the first one decides, the others follow.

Collectives run only when attached and at the fixed jump steps, in a process group of the hook's own (gloo, in host
memory), so that neither the trainer's collectives nor their order are touched. None of them waits for ever: where a rank
died, or does not come in time, the others get a `RanksLostError`, and go on training without jumps.

A jump stays where all ranks said in one last collective that they made it; where that fails it is undone. No protocol can
do better than make the gap small: a rank that stops for longer than the wait after it has said so, and before it has heard
the others, undoes its jump alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from koopcast.errors import FailedPrecondition, Unavailable

__all__ = ["WAIT_SECONDS", "Ranks", "RanksLostError", "process_count"]

T = TypeVar("T")

WAIT_SECONDS: Final = 60.0
"""How long a rank waits for the others, unless told otherwise. Probes do not count: the first rank says that it is busy."""

_NUMBERS: Final = 8
"""Numbers in a message; all are as long, so that whoever waits for one can get another."""
_SAID, _BUSY = 0, 1
_TEXT_BYTES: Final = 1024


class RanksLostError(Unavailable):
    """Another rank died, or did not come to a meeting in time: there are no meetings any more."""


class Ranks:
    """The processes of the default group, as they meet.

    Attributes:
        several: whether there are others.
        index: which one this is, from 0.
        count: how many there are.
        leading: whether this process decides.
        wait_seconds: longest wait for the others.
    """

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        """Look at the default process group; without one this process is alone. On all ranks, or on none.

        Args:
            wait_seconds: longest wait for the others.

        Raises:
            FailedPrecondition: the ranks cannot talk to each other.
        """
        self.count = process_count()
        self.index = dist.get_rank() if self.count > 1 else 0
        self.several = self.count > 1
        self.leading = self.index == 0
        self.wait_seconds = wait_seconds
        self._lost: str | None = None
        self._group: Any = _new_group(wait_seconds) if self.several else None

    def tell(self, numbers: Sequence[int]) -> list[int]:
        """The first rank's numbers (at most 7), on all ranks; returns as soon as they are here.

        Raises:
            RanksLostError: they did not come.
        """
        if not self.several:
            return list(numbers)
        while True:
            kind, *told = self._told(_SAID, numbers)
            if kind == _SAID:
                return told[: len(numbers)]

    def busy(self) -> None:
        """Say on the first rank that what the others wait for will take a while."""
        if self.several and self.leading:
            with contextlib.suppress(RanksLostError):  # the next meeting will say so
                self._told(_BUSY, [])

    def tell_text(self, text: str) -> str:
        """The first rank's text (at most 1 KiB), on all ranks."""
        if not self.several:
            return text
        encoded = text.encode()[:_TEXT_BYTES]
        message = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        message[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else 0
        self._collective(lambda: dist.broadcast(message, src=0, group=self._group))
        return bytes(message.tolist()).rstrip(b"\0").decode()

    def tell_tensor(self, tensor: Tensor) -> Tensor:
        """The first rank's contents, written into `tensor` (on the CPU) on all ranks."""
        if self.several:
            self._collective(lambda: dist.broadcast(tensor, src=0, group=self._group))
        return tensor

    def any_of(self, flag: bool) -> bool:  # noqa: FBT001  # the flag is the message
        """Whether it is true on any rank; returns only when all are here."""
        return bool(self._reduced(float(flag), dist.ReduceOp.MAX)) if self.several else flag

    def all_of(self, flag: bool) -> bool:  # noqa: FBT001  # likewise
        """Whether it is true on all ranks; returns only when all are here."""
        return not self.any_of(not flag)

    def mean(self, number: float) -> float:
        """The mean over all ranks; NaN where it is not finite on any."""
        if not self.several:
            return number
        return (
            self._reduced(number if abs(number) < float("inf") else float("nan"), dist.ReduceOp.SUM)
            / self.count
        )

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the first rank's contents.

        Raises:
            RanksLostError: some came, some did not.
        """
        if not self.several:
            return
        with torch.no_grad():
            for tensor in tensors:
                here = tensor.detach().to("cpu").contiguous()
                self.tell_tensor(here)
                if not self.leading:
                    tensor.copy_(here)

    def close(self) -> None:
        """Leave: the others, should they still meet, find out at once."""
        group, self._group = self._group, None
        self._lost = self._lost or "closed here"
        if group is not None and dist.is_initialized():
            try:
                dist.destroy_process_group(group)
            except (RuntimeError, ValueError):  # the default group was destroyed before, and this one with it
                return

    def _told(self, kind: int, numbers: Sequence[int]) -> list[int]:
        message = torch.zeros(_NUMBERS, dtype=torch.int64)
        message[: 1 + len(numbers)] = torch.tensor([kind, *numbers], dtype=torch.int64)
        self._collective(lambda: dist.broadcast(message, src=0, group=self._group))
        return [int(number) for number in message.tolist()]

    def _reduced(self, number: float, operation: Any) -> float:
        message = torch.tensor([number], dtype=torch.float64)
        self._collective(lambda: dist.all_reduce(message, op=operation, group=self._group))
        return float(message)

    def _collective(self, act: Callable[[], T]) -> T:
        """What torch raises becomes a `RanksLostError`; the first one was the last that was tried."""
        if self._lost is not None:
            raise RanksLostError(self._lost, reason="RANKS_LOST")
        try:
            return act()
        except (RuntimeError, ValueError) as error:
            self._lost = f"the other ranks did not meet this one within {self.wait_seconds:g} s, or died ({_first_line(error)})"
            raise RanksLostError(self._lost, reason="RANKS_LOST") from error


def process_count() -> int:
    """Processes of the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _new_group(wait_seconds: float) -> Any:
    if not dist.is_gloo_available():
        raise FailedPrecondition(
            "this torch has no gloo backend, by which the ranks of a job meet: attach on one rank alone, before "
            "torch.distributed is initialized, or use a torch with gloo",
            reason="NO_GLOO",
        )
    try:
        return dist.new_group(backend="gloo", timeout=timedelta(seconds=wait_seconds))
    except (RuntimeError, ValueError) as error:
        raise FailedPrecondition(
            f"the ranks cannot reach each other over gloo ({_first_line(error)}): attach must be called on every rank of the "
            "default group, and GLOO_SOCKET_IFNAME may have to name the network interface",
            reason="NO_GLOO",
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]
