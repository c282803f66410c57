"""The copies of the parameters that travel: a fixed number of flat buffers in host memory.

On the CPU a snapshot is one fused copy. From a GPU it is copied on a stream of its own into pinned memory, while the
next forward and backward pass run; only what changes the weights has to wait for it (`BufferPool.hold_writers`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from koopcast.hook.memory import Arena
from koopcast.wire import TensorSpec

__all__ = ["BufferPool", "SnapshotBuffer"]

_ALIGNMENT: Final = 64
"""Tensors of one buffer begin at multiples of this where their types mix. Unit: bytes."""


class SnapshotBuffer:
    """A copy of the parameters in host memory, pinned where they live on a GPU.

    Attributes:
        tensors: name to its part of the buffer, one after the other in the order of the specs.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], *, pinned: bool) -> None:
        """Allocate."""
        self._pinned = pinned
        offsets, size = _places(specs)
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self.tensors: dict[str, Tensor] = {}
        for (name, spec), offset in zip(specs.items(), offsets, strict=True):
            dtype: torch.dtype = getattr(torch, spec.dtype)
            part = self._memory[offset : offset + _size(spec)]
            self.tensors[name] = part.view(dtype).view(spec.shape)
        self._copied: list[torch.cuda.Event] = []
        self._sources: list[Tensor] = []  # held until the copy is done, so that nobody else gets their memory

    @property
    def memory(self) -> Tensor | None:
        """All bytes (1-d, uint8), to lend to something else; None where they are pinned, which is no place to work in."""
        return None if self._pinned else self._memory

    def fill(
        self, sources: Mapping[str, Tensor], streams: Mapping[torch.device, torch.cuda.Stream] | None = None
    ) -> list[torch.cuda.Event]:
        """Copy, or begin to: from a GPU on its stream of `streams`, behind what its current stream has queued.

        Returns:
            what must have happened before anything may write to `sources` again.
        """
        by_device: dict[torch.device, tuple[list[Tensor], list[Tensor]]] = {}
        for name, target in self.tensors.items():
            source = sources[name].detach()
            targets, values = by_device.setdefault(source.device, ([], []))
            targets.append(target)
            values.append(source)
        self._copied, self._sources = [], []
        for device, (targets, values) in by_device.items():
            if device.type == "cuda":
                stream = streams[device] if streams else torch.cuda.current_stream(device)
                self._copied.append(_copied_behind(stream, targets, values))
                self._sources += values
            else:
                torch._foreach_copy_(targets, values)
        return list(self._copied)

    def wait(self) -> None:
        """Return when the copy is done."""
        for event in self._copied:
            event.synchronize()
        self._copied, self._sources = [], []


class BufferPool:
    """A fixed number of snapshot buffers: the bound on how far the service may lag behind.

    Attributes:
        snapshot_bytes: bytes of one snapshot.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], depth: int, *, pinned: bool) -> None:
        """Allocate `depth` buffers."""
        self.snapshot_bytes = sum(_size(spec) for spec in specs.values())
        self._free: queue.Queue[SnapshotBuffer] = queue.Queue()
        for _ in range(depth):
            self._free.put(SnapshotBuffer(specs, pinned=pinned))
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pending: list[torch.cuda.Event] = []

    def take(self, timeout_seconds: float) -> SnapshotBuffer | None:
        """A free buffer; None where none comes free in time."""
        try:
            return self._free.get(timeout=timeout_seconds) if timeout_seconds > 0 else self._free.get_nowait()
        except queue.Empty:
            return None

    def give(self, buffer: SnapshotBuffer) -> None:
        """Return a buffer."""
        self._free.put(buffer)

    def fill(self, buffer: SnapshotBuffer, sources: Mapping[str, Tensor]) -> None:
        """Copy `sources` into a buffer that was taken; call `hold_writers` before anything writes to them again."""
        for device in _cuda_devices(sources.values()):
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as above
        self._pending += buffer.fill(sources, self._streams)

    def hold_writers(self) -> None:
        """Let what is queued on the GPU from now on wait for the copies that read the weights. Never waits itself."""
        pending, self._pending = self._pending, []
        for event in pending:
            torch.cuda.current_stream(event.device).wait_event(event)

    def lend(self) -> Arena:
        """The buffers that are free now, as memory for copies; they are missing here until it is released."""
        lent: list[SnapshotBuffer] = []
        while (buffer := self.take(0.0)) is not None:
            lent.append(buffer)
        lock = threading.Lock()

        def give_back() -> None:
            with lock:
                for one in lent:
                    self.give(one)
                lent.clear()

        return Arena([one.memory for one in lent if one.memory is not None], give_back)


def _copied_behind(
    stream: torch.cuda.Stream, targets: list[Tensor], values: list[Tensor]
) -> torch.cuda.Event:
    """Queue the copies on `stream`, behind the current one of their device."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch lacks the annotation
    with torch.cuda.stream(stream):
        torch._foreach_copy_(targets, values, non_blocking=True)
        event.record(stream)
    return event


def _cuda_devices(tensors: Iterable[Tensor]) -> set[torch.device]:
    return {tensor.device for tensor in tensors if tensor.is_cuda}


def _size(spec: TensorSpec) -> int:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return torch.Size(spec.shape).numel() * dtype.itemsize


def _places(specs: Mapping[str, TensorSpec]) -> tuple[list[int], int]:
    """Offset of each tensor, and the size of all; without gaps where they have one type."""
    alignment = _ALIGNMENT if len({spec.dtype for spec in specs.values()}) > 1 else 1
    offsets, end = [], 0
    for spec in specs.values():
        start = end + -end % alignment
        offsets.append(start)
        end = start + _size(spec)
    return offsets, end
