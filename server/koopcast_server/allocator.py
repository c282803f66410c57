"""How the C library hands out the megabytes that answers and snapshots pass through.

By default glibc takes chunk-sized buffers from the kernel and gives them back, over and over: every megabyte that
arrives or leaves is then mapped, filled with zeros page by page, and unmapped again.

What is kept is kept for each arena, and glibc makes one for every new thread, up to eight a core: what a burst needed once
stays behind in all of them. Two arenas are enough for the few threads that copy megabytes.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_MMAP_BYTES: Final = 32 << 20
"""Larger buffers are mapped, as arrays as long as a model are; glibc takes no larger threshold."""
_KEPT_BYTES: Final = 64 << 20
_PAD_BYTES: Final = 16 << 20
_ARENAS: Final = 2


def keep_freed_memory() -> bool:
    """Has the C library keep freed buffers for the next ones; returns whether it does. For a process of our own only.

    Before threads start: the settings hold for the whole process. Does nothing where the C library is not glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = (
        (_MMAP_THRESHOLD, _MMAP_BYTES),
        (_TRIM_THRESHOLD, _KEPT_BYTES),
        (_TOP_PAD, _PAD_BYTES),
        (_ARENA_MAX, _ARENAS),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
