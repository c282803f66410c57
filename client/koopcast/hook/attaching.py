"""`attach`: checks what the user gave, and puts the hook together."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import nn

from koopcast.client import connect
from koopcast.hook.ahead import Ahead
from koopcast.hook.arguments import check_callables, check_flags, check_question, check_timing, check_trainer
from koopcast.hook.held_job import JobSettings
from koopcast.hook.leader import Leader
from koopcast.hook.link import Link
from koopcast.hook.policy import SearchOrder
from koopcast.hook.ranks import Ranks
from koopcast.hook.rates import LearningRate, check_learning_rate
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


def attach(  # noqa: PLR0913  # one call is the whole interface; all but three are keywords
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
    learning_rate: LearningRate | None = None,
    on_jump: OnJump | None = None,
    lag: int = 0,
    wait_seconds: float = 0.25,
    average: bool = False,
    watch: bool = True,
    filter: Filter | None = None,  # noqa: A002  # what users call it
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
        learning_rate: the schedule, where the learning rate is not constant: under a schedule training is predictable
            in summed learning rate, not in steps. Either a function that gives the rate of the first parameter group
            for every optimizer step, counted from 0 when attached; or this optimizer's scheduler, if it steps once
            after every optimizer step (it is copied, and never stepped). A schedule that turns out not to be the one
            training follows is left aside, with one warning.
        on_jump: called with the model after weights were moved and before they are probed, e.g. to recompute
            BatchNorm statistics. What it leaves in parameters and buffers stays if the jump is accepted.
        lag: decide a jump so many steps after asking for it, so that the answer is there by then.
        wait_seconds: longest time an attempt may wait for the service.
        average: snapshots are means of the weights over the last `every` steps. Costs one addition of the weights
            every step, and a copy of them; helps against noise.
        watch: with a probe, ask it once more a stride after each jump, and undo the jump (weights, buffers and
            optimizer state) if the loss is then more than a tenth worse than before it. Costs one probe a jump, and
            a copy of all that in between.
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
    check_trainer(model, optimizer)
    check_callables(probe=probe, on_jump=on_jump, filter=filter, search=search)
    timing = check_timing(every, lag, wait_seconds, average)
    check_flags(watch=watch)
    question = check_question(
        operator, operators, horizons, search or Walk(), every, probed=probe is not None
    )
    question = replace(question, rates=check_learning_rate(learning_rate, optimizer))
    job_operator = operator if operator is not None else question.operators[0]
    selection = Selection(model, filter, averaged=timing.averaging > 1)
    name = check_job_name(job) if job is not None else _unique_name()
    schedule = JumpSchedule(
        timing.every, job_operator.snapshots_wanted, timing.lag, watching=watch and probe is not None
    )
    ranks, counters = Ranks(), Counters()
    leader = None
    if ranks.leading:
        evaluator = Evaluator(model, probe, on_jump, counters)
        pool = BufferPool(selection.specs, _QUEUE_DEPTH, pinned=selection.on_gpu)
        settings = JobSettings(name, job is None, selection.specs, every, job_operator, timing.averaging)
        client = connect(target, token=token, ca=ca, insecure=insecure, timeout_seconds=_CALL_SECONDS)
        link = Link(client, settings, pool, counters)
        budget = WaitBudget(timing.wait_seconds, counters)
        recorder = Recorder(selection, link, pool, timing.averaging, budget, counters)
        leader = Leader(evaluator, optimizer, recorder, link, question, budget, counters)
        link.start(_FIRST_OPEN_SECONDS)
    return Ahead(name, model, optimizer, schedule, ranks, leader, counters)


def _unique_name() -> str:
    host = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname())[
        :64
    ]
    return f"{host or 'trainer'}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
