"""The ways of sending that are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from koopcast.encoding import EncodingName

__all__ = ["RAW", "VARIANTS", "Variant"]


@dataclass(frozen=True, slots=True)
class Variant:
    """How snapshots go up and answers come down.

    Attributes:
        encoding: of the snapshots.
        wire_dtype: of the answers, and of the differences where the encoding is ``"delta"``.
    """

    encoding: EncodingName
    wire_dtype: str

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `open_job` and `attach`."""
        return {"encoding": self.encoding, "wire_dtype": self.wire_dtype}

    def __str__(self) -> str:
        return f"{self.encoding}, {self.wire_dtype}"


RAW = Variant("raw", "float32")
VARIANTS = (
    RAW,
    Variant("raw", "bfloat16"),
    Variant("raw", "float16"),
    Variant("delta", "bfloat16"),
    Variant("delta", "float16"),
    Variant("delta-int8", "float32"),
    Variant("delta-int8", "bfloat16"),
)
"""The first one is what the others are compared with."""
