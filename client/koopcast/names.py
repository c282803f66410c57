"""Job names."""

from __future__ import annotations

import re
from typing import Final

from koopcast.errors import ArgumentTypeError, ArgumentValueError

__all__ = ["check_job_name"]

_JOB_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def check_job_name(name: object) -> str:
    """Returns `name` if it may name a job.

    Raises:
        ArgumentTypeError: it is no string.
        ArgumentValueError: other characters than letters, digits, '.', '_', '-', or not 1 to 128 of them.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a job's name must be a string, not {name!r}", field="name")
    if not _JOB_NAME.fullmatch(name):
        raise ArgumentValueError(
            f"a job's name is 1 to 128 letters, digits, '.', '_' or '-'; not {name[:140]!r}",
            field="name",
            limit=128,
        )
    return name
