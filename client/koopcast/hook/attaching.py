"""`attach`: checks what the user gave, and puts the hook together."""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from koopcast.client import Client, connect
from koopcast.errors import ArgumentTypeError, ArgumentValueError
from koopcast.hook.ahead import Ahead
from koopcast.hook.leader import Leader, QuestionSettings
from koopcast.hook.link import JobSettings, Link
from koopcast.hook.policy import (
    BACKTESTED_HORIZON_STRIDES,
    DEFAULT_OPERATORS,
    PROBED_HORIZON_STRIDES,
    SearchOrder,
)
from koopcast.hook.ranks import Ranks
from koopcast.hook.recorder import Recorder, WaitBudget
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.selection import BufferPool, Filter, Selection
from koopcast.hook.stats import Counters
from koopcast.hook.trial import Evaluator, OnJump, Probe
from koopcast.hook.walk import Walk
from koopcast.names import check_job_name
from koopcast.operator import Operator

__all__ = ["attach"]

_CALL_SECONDS: Final = 5.0
"""Deadline of the background thread's calls: short enough that a lost service is found again within 30 s."""
_FIRST_OPEN_SECONDS: Final = 2.0
"""How long `attach` waits for the job to open, so that the first snapshot finds it open."""
_QUEUE_DEPTH: Final = 2


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    target: str | None = None,
    *,
    job: str | None = None,
    probe: Probe | None = None,
    every: int = 10,
    operator: Operator | None = None,
    operators: Sequence[Operator] | None = None,
    horizons: Sequence[float] | None = None,
    on_jump: OnJump | None = None,
    lag: int = 0,
    wait_seconds: float = 0.25,
    average: bool = False,
    filter: Filter | None = None,
    search: SearchOrder | None = None,
    token: str | None = None,
    ca: str | os.PathLike[str] | bytes | None = None,
    insecure: bool = False,
) -> Ahead:
    """Lets training jump ahead: from now on `optimizer.step()` takes snapshots and, where it pays, jumps.

    Once the arguments are checked, nothing here raises into the training loop or holds it longer than `wait_seconds`
    an attempt, whatever happens to the service. If every jump is refused, or there is no service, training is
    bit-identical to plain training.

    Args:
        model: the model that `optimizer` trains.
        optimizer: its `step` is the trainer's step.
        target: ``"host:port"`` or ``"unix:/path"`` of a service; None runs one in this process (needs
            ``koopcast[server]``; under torch.distributed on the first rank only).
        job: the job's name; by default a unique one.
        probe: the loss of the model as it is, the lower the better, best on a fixed batch. Called without
            arguments on this thread, with gradients enabled. It may change what it likes: parameters, buffers,
            gradients, optimizer state, modes and random states are restored. Without a probe the service's
            back-test decides, and jumps are short. Under torch.distributed it runs on the first rank only, so it
            must not use collectives (call the bare module, not its DDP wrapper).
        every: optimizer steps between two snapshots.
        operator: settings of the job's operators.
        operators: operators whose predictions compete; rank, ridge and stabilisation count. By default `operator`,
            or a pair that serves well.
        horizons: how far to look ahead, in trainer steps.
        on_jump: called with the model after weights were moved and before they are probed, e.g. to recompute
            BatchNorm statistics. What it leaves in parameters and buffers stays if the jump is accepted.
        lag: decide a jump so many steps after asking for it, so that the answer is there by then.
        wait_seconds: longest time an attempt may wait for the service.
        average: snapshots are means of the weights over the last `every` steps. Costs one addition of the weights
            every step, and a copy of them; helps against noise.
        filter: ``filter(name, parameter)`` says which parameters take part; by default those that require gradients.
            Only float64, float32, bfloat16 and float16 ones can.
        search: in which order the probe looks at the predictions (`koopcast.hook.policy`); by default `Walk`.
        token: bearer token; by default the environment's ``KOOPCAST_TOKEN``.
        ca: certificate of the authority that signed the service's, for TLS.
        insecure: allow a plain connection to another host.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument that cannot work, before anything was attached.
        MissingExtra: `target` is None and the server is not installed.
    """
    _check_trainer(model, optimizer)
    _check_callables(probe=probe, on_jump=on_jump, filter=filter, search=search)
    timing = _check_timing(every, lag, wait_seconds, average)
    question = _question(
        operator, operators, horizons, timing.every, search or Walk(), probed=probe is not None
    )
    window_operator = operator if operator is not None else question.operators[0]
    schedule = JumpSchedule(timing.every, window_operator.window, timing.lag)
    selection = Selection(model, filter, averaged=timing.averaging > 1)
    name = check_job_name(job) if job is not None else _unique_name()
    ranks, counters = Ranks(), Counters()
    leader = None
    if ranks.leading:
        client = connect(target, token=token, ca=ca, insecure=insecure, timeout_seconds=_CALL_SECONDS)
        settings = JobSettings(
            name, job is None, selection.specs, timing.every, window_operator, averaging=timing.averaging
        )
        evaluator = Evaluator(model, probe, on_jump, counters)
        leader = _leader(client, settings, selection, evaluator, optimizer, question, timing, counters)
    return Ahead(name, model, optimizer, schedule, ranks, leader, counters)


@dataclass(frozen=True, slots=True)
class _Timing:
    every: int
    lag: int
    wait_seconds: float
    averaging: int


def _leader(
    client: Client,
    settings: JobSettings,
    selection: Selection,
    evaluator: Evaluator,
    optimizer: torch.optim.Optimizer,
    question: QuestionSettings,
    timing: _Timing,
    counters: Counters,
) -> Leader:
    on_gpu = any(parameter.is_cuda for parameter in selection.parameters().values())
    pool = BufferPool(selection.specs, _QUEUE_DEPTH, pinned=on_gpu)
    link = Link(client, settings, pool, counters)
    budget = WaitBudget(timing.wait_seconds, counters)
    recorder = Recorder(selection, link, pool, timing.averaging, budget, counters)
    link.start(_FIRST_OPEN_SECONDS)
    return Leader(evaluator, optimizer, recorder, link, question, budget, counters)


def _check_trainer(model: Any, optimizer: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ArgumentTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}", field="model")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ArgumentTypeError(
            f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}; give a wrapper's own "
            "optimizer (for instance its .optimizer)",
            field="optimizer",
        )


def _check_callables(**callables: Callable[..., Any] | None) -> None:
    for field, given in callables.items():
        if given is not None and not callable(given):
            raise ArgumentTypeError(f"{field} must be callable, not {given!r}", field=field)


def _check_timing(every: Any, lag: Any, wait_seconds: Any, average: Any) -> _Timing:
    for field, value, least in (("every", every, 1), ("lag", lag, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(f"{field} must be a whole number of steps, not {value!r}", field=field)
        if value < least:
            raise ArgumentValueError(f"{field} must be at least {least}, not {value}", field=field)
    if isinstance(wait_seconds, bool) or not isinstance(wait_seconds, int | float):
        raise ArgumentTypeError(f"wait_seconds must be a number, not {wait_seconds!r}", field="wait_seconds")
    if not (math.isfinite(wait_seconds) and wait_seconds >= 0):
        raise ArgumentValueError(
            f"wait_seconds must be finite and >= 0, not {wait_seconds}", field="wait_seconds"
        )
    if not isinstance(average, bool):
        raise ArgumentTypeError(f"average must be a bool, not {average!r}", field="average")
    return _Timing(every, lag, float(wait_seconds), every if average else 1)


def _question(
    operator: Any, operators: Any, horizons: Any, every: int, search: SearchOrder, *, probed: bool
) -> QuestionSettings:
    if operator is not None and not isinstance(operator, Operator):
        raise ArgumentTypeError(f"operator must be a koopcast.Operator, not {operator!r}", field="operator")
    if operators is None:
        operators = DEFAULT_OPERATORS if operator is None else (operator,)
    if not isinstance(operators, Sequence) or not all(isinstance(one, Operator) for one in operators):
        raise ArgumentTypeError("operators must be a sequence of koopcast.Operator", field="operators")
    if not 1 <= len(operators) <= 16:
        raise ArgumentValueError(
            f"operators must hold 1 to 16 of them, not {len(operators)}", field="operators"
        )
    strides = PROBED_HORIZON_STRIDES if probed else BACKTESTED_HORIZON_STRIDES
    horizons = [every * count for count in strides] if horizons is None else horizons
    if not isinstance(horizons, Sequence) or not all(_is_number(horizon) for horizon in horizons):
        raise ArgumentTypeError("horizons must be a sequence of numbers of trainer steps", field="horizons")
    if not 1 <= len(horizons) <= 64 or not all(math.isfinite(h) and h > 0 for h in horizons):
        raise ArgumentValueError(
            "horizons must be 1 to 64 finite numbers of trainer steps > 0", field="horizons"
        )
    return QuestionSettings(tuple(float(h) for h in horizons), tuple(operators), search)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_name() -> str:
    host = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname())[
        :64
    ]
    return f"{host or 'trainer'}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
