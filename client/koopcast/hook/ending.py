"""Ends the background threads of hooks that nobody closed: with their owner, or with the interpreter."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401  # registers its own end, which must come after ours
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from koopcast.hook.link import Link

__all__ = ["at_end"]

_links: Final[weakref.WeakSet[Link]] = weakref.WeakSet()


def at_end(owner: object, link: Link) -> weakref.finalize[..., Any]:
    """Stop `link` when `owner` is gone or the interpreter ends, unless the result is called or detached before."""
    stop = weakref.finalize(owner, link.stop)
    stop.atexit = False
    _links.add(link)
    return stop


def _stop_all() -> None:
    for link in list(_links):
        link.stop()


# Python's threading ends before `atexit`, and with it the executors that an embedded service still needs to take
# the last snapshot; what is registered there last is called first.
_register: Callable[[Callable[[], None]], Any] = getattr(threading, "_register_atexit", atexit.register)
_register(_stop_all)
