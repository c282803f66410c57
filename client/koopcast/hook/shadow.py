"""The optimizer's state during a probe: copies, made when somebody looks, so that most probes cost none."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from typing import Any

__all__ = ["ShadowState"]


class ShadowState(MutableMapping[Any, Any]):
    """Looks like an optimizer's state; what is read or written through it never reaches the original.

    The state of a parameter is copied when it is first looked at: copies of all of it would be twice the model's size
    under Adam, and a probe rarely steps the optimizer.
    """

    def __init__(self, original: MutableMapping[Any, Any]) -> None:
        """Stand in for `original`, a defaultdict of dicts."""
        self._original = original
        self._copies: dict[Any, Any] = {}
        self._deleted: set[Any] = set()

    def __getitem__(self, key: Any) -> Any:
        if key not in self._copies:
            held = key in self._original and key not in self._deleted
            self._copies[key] = copy.deepcopy(self._original[key]) if held else {}
            self._deleted.discard(key)
        return self._copies[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._copies[key] = value
        self._deleted.discard(key)

    def __delitem__(self, key: Any) -> None:
        if key not in self:
            raise KeyError(key)
        self._copies.pop(key, None)
        self._deleted.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self._copies or (key in self._original and key not in self._deleted)

    def __iter__(self) -> Iterator[Any]:
        yield from [key for key in self._original if key not in self._deleted]
        yield from [key for key in self._copies if key not in self._original]

    def __len__(self) -> int:
        return sum(1 for _ in self)
