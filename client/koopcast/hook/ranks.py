"""The ranks of a job under torch.distributed: the first one decides, the others follow.

Collectives run only at the fixed jump steps, and whatever went wrong on the first rank, it still takes part in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ranks"]


class Ranks:
    """The processes of the default group, each with a replica of the model.

    Attributes:
        leading: whether this process decides.
        several: whether there are others.
    """

    def __init__(self) -> None:
        """Look at the default process group; without one this process is alone."""
        joined = dist.is_available() and dist.is_initialized()
        self.several = joined and dist.get_world_size() > 1
        self.leading = not self.several or dist.get_rank() == 0
        on_gpu = self.several and "nccl" in str(dist.get_backend())
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def agree(self, numbers: Sequence[int]) -> list[int]:
        """The first rank's numbers, on all ranks."""
        if not self.several:
            return list(numbers)
        message = torch.tensor(list(numbers), dtype=torch.int64, device=self._device)
        dist.broadcast(message, src=0)
        return [int(number) for number in message.tolist()]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the first rank's contents."""
        if self.several:
            with torch.no_grad():
                for tensor in tensors:
                    whole = tensor.detach().contiguous()
                    dist.broadcast(whole, src=0)
                    tensor.copy_(whole)
