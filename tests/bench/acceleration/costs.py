"""Where koopcast harms, and what it costs beside the steps it counts, as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from acceleration.score import HARM, METHODS, OURS, PLAIN, Plan, Record, Score, fact
from acceleration.summary import MEASURES, harms, ratios_of
from recording import table

__all__ = ["figure", "harm_table", "overhead_table"]

_Cost = Callable[[Record, Record], float | None]
"""Of a run and its reference; None where the run does not tell."""
_NOTHING: Final = "–"


def figure(ratio: float) -> str:
    """A ratio, with as many digits as tables show."""
    return f"{ratio:.1f}" if ratio >= 9.995 else f"{ratio:.2f}"


def harm_table(scores: Sequence[Score], plan: Plan) -> str:
    """Every cell that koopcast made worse than `HARM` in anything, the worst first, and how many were looked at."""
    counts = []
    for method in OURS:
        have = {one.key for one in scores if one.method == method}
        due = plan.due(plan.tasks(), plan.optimizers)
        timed = sum(bool(one.seconds) for one in scores if one.method == method)
        timed_due = len(plan.due(plan.tasks(), plan.optimizers, timed=True))
        present = f"{len(have & set(due))} of {len(due)} cells, {timed} of {timed_due} timed"
        counts.append(f"{METHODS[method]}: {present}")
    found = harms(scores)
    said = f"Looked at: {'; '.join(counts)}. Ratios below {HARM}: {len(found)} (bold)."
    by_cell = {(one.method, one.key): ratios_of(one) for one in scores}
    rows = []
    for method, key in dict.fromkeys((one.method, one.key) for one in found):  # the worst first
        ratios = by_cell[method, key]
        told = [_marked(ratios[what]) if what in ratios else _NOTHING for what in MEASURES]
        rows.append([METHODS[method], *key[:2], str(key[2]), *told])
    return f"{said}\n\n{table(['method', 'task', 'optimizer', 'seed', *MEASURES], rows)}" if rows else said


def _marked(ratio: float) -> str:
    return f"**{figure(ratio)}**" if ratio < HARM else figure(ratio)


def overhead_table(records: Iterable[Record], plan: Plan) -> str:
    """Medians over the headline optimizers, a line for every method of koopcast's and every task.

    Columns: seconds over counted steps, against the same of plain training (what remains where steps and probes are
    paid for); of all counted steps, those that were no optimizer steps; of all seconds, those in the hook (copies,
    probes and waiting together), and those of them spent waiting for the service.
    """
    timed = {
        (one["task"], one["optimizer"], one["seed"], one["method"]): one for one in records if one["timed"]
    }
    rows = []
    for method in OURS:
        for task in plan.tasks():
            due = plan.due([task], plan.headline, timed=True)
            both = [key for key in due if (*key, method) in timed and (*key, PLAIN) in timed]
            pairs = [(timed[*key, method], timed[*key, PLAIN]) for key in both]
            if pairs:
                costs = [_median(pairs, *each) for each in _COSTS.values()]
                rows.append([METHODS[method], task, f"{len(pairs)} of {len(due)}", *costs])
    return table(["method", "task", "cells", *_COSTS], rows) if rows else "No timed cells."


def _second_per_step(run: Record, plain: Record) -> float:
    own, reference = (float(one["seconds_total"]) / float(one["counted_steps"]) for one in (run, plain))
    return own / reference


def _beyond_steps(run: Record, plain: Record) -> float:
    return 1 - float(run["optimizer_steps"]) / float(run["counted_steps"])


def _share_of_seconds(name: str) -> _Cost:
    def share(run: Record, plain: Record) -> float | None:
        seconds = fact(run.get("facts") or {}, name)
        return None if seconds is None else float(seconds) / float(run["seconds_total"])

    return share


_COSTS: Final[Mapping[str, tuple[_Cost, str]]] = {
    "time a counted step, against plain": (_second_per_step, "{:.3f}"),
    "steps counted for probes": (_beyond_steps, "{:.1%}"),
    "time in the hook": (_share_of_seconds("seconds_in_hook"), "{:.1%}"),
    "time waiting for the service": (_share_of_seconds("seconds_blocked"), "{:.1%}"),
}


def _median(pairs: Sequence[tuple[Any, Any]], cost: _Cost, form: str) -> str:
    costs = [value for pair in pairs if (value := cost(*pair)) is not None]
    return form.format(np.median(costs)).replace("%", " %") if costs else _NOTHING
