"""The checksum of every chunk, crc32c, and that of two stretches of bytes from the checksums of each."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import crc32c as _crc32c

__all__ = ["checksum", "combine"]

_POLYNOMIAL: Final = 0x82F63B78
"""Of crc32c, the lowest power in the highest bit."""


def checksum(data: Any, previous: int = 0) -> int:
    """crc32c of a buffer, continued from `previous`."""
    return int(_crc32c.crc32c(data, previous))


def combine(crc32c: int, following: int, following_bytes: int) -> int:
    """crc32c of two stretches of bytes one after the other, from the checksums of each.

    A checksum is a polynomial over GF(2); the bytes that follow multiply it by a power of x (as zlib's crc32_combine).

    Args:
        crc32c: of the first stretch.
        following: of the second one.
        following_bytes: length of the second one.
    """
    return _times(_shift(following_bytes), crc32c) ^ following


def _times(one: int, other: int) -> int:
    """The product of two polynomials, modulo that of crc32c."""
    product = 0
    for bit in range(31, -1, -1):
        if one >> bit & 1:
            product ^= other
        other = other >> 1 ^ (_POLYNOMIAL if other & 1 else 0)
    return product


@lru_cache(maxsize=64)
def _shift(byte_count: int) -> int:
    """The power of x that so many bytes are: nearly all chunks have one length."""
    power, square = 1 << 31, 1 << 23  # 1, and x to the 8th
    while byte_count:
        if byte_count & 1:
            power = _times(square, power)
        square = _times(square, square)
        byte_count >>= 1
    return power
