"""`attach`: checks what the user gave, and puts the hook together."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from koopcast.encoding import EncodingName, check_encoding
from koopcast.hook.ahead import Ahead
from koopcast.hook.arguments import (
    MODES,
    Mode,
    check_callables,
    check_choice,
    check_flags,
    check_question,
    check_refine,
    check_timing,
    check_trainer,
    check_writer,
)
from koopcast.hook.assembling import Callbacks, Parts, Service, assemble
from koopcast.hook.held_job import JobSettings
from koopcast.hook.holding import HOLDERS, Snapshots, check_holding
from koopcast.hook.loop import LoopSettings, Trainer, parameters_of
from koopcast.hook.optimizer_state import POLICIES, OptimizerPolicy
from koopcast.hook.policy import SearchOrder
from koopcast.hook.ranks import WAIT_SECONDS, Ranks
from koopcast.hook.rates import LearningRate, check_learning_rate
from koopcast.hook.refined_attempts import plan_refining
from koopcast.hook.regime import Regime, tells_noise
from koopcast.hook.scalars import Scalars, ScalarWriter
from koopcast.hook.schedule import JumpSchedule
from koopcast.hook.selection import Filter, Selection
from koopcast.hook.stats import Counters
from koopcast.hook.trial import OnJump, Probe
from koopcast.hook.walk import Walk
from koopcast.names import check_job_name
from koopcast.operator import Operator
from koopcast.wire import ELEMENT_BYTES, Layout

__all__ = ["attach"]


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
    mode: Mode = "auto",
    strict: bool = False,
    refine: int | None = None,
    optimizer_state: OptimizerPolicy = "auto",
    filter: Filter | None = None,  # noqa: A002  # what users call it
    search: SearchOrder | None = None,
    tensorboard: ScalarWriter | None = None,
    encoding: EncodingName = "raw",
    wire_dtype: str | None = None,
    snapshots: Snapshots = "auto",
    window_device: torch.device | str | None = None,
    meeting_seconds: float = WAIT_SECONDS,
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
        optimizer: its `step` is the trainer's step; Accelerate's wrapper will do.
        target: ``"host:port"`` or ``"unix:/path"`` of a service; None runs one in this process (needs
            ``koopcast[server]``; under torch.distributed on the first rank only).
        job: the job's name; by default a unique one.
        probe: the loss of the model as it is, the lower the better, best on a fixed batch. Called without
            arguments on this thread, with gradients enabled. It may change what it likes: parameters, buffers,
            gradients, optimizer state, modes and random states are restored. Without a probe the service's
            back-test decides, and jumps are short. Under torch.distributed it runs on the first rank only, so it
            must not use collectives (call the bare module, not its DDP wrapper); of a model whose parameters are
            sharded it runs on all ranks at the same time, as a step does, and the mean of their losses counts.
        every: optimizer steps between two snapshots.
        operator: settings of the job's operators.
        operators: operators whose predictions compete; rank, ridge and stabilisation count. By default `operator`,
            or a pair that serves well.
        horizons: how far to look ahead, in trainer steps.
        learning_rate: the schedule, where the learning rate is not constant: under a schedule training is predictable
            in summed learning rate, not in steps. Either a function that gives the rate of the first parameter group
            for every optimizer step, counted from 0 when attached; or this optimizer's scheduler, if it steps once
            after every optimizer step (it is copied, and never stepped). A schedule that turns out not to be the one
            training follows is left aside, with one warning. Without it, a rate that changes by a factor of 2 or more
            from one step to the next begins a new window: what came before says little of what comes after.
        on_jump: called with the model after weights were moved and before they are probed, e.g. to recompute
            BatchNorm statistics (`koopcast.update_bn`). What it leaves in parameters and buffers stays if the jump is
            accepted.
        lag: decide a jump so many steps after asking for it, so that the answer is there by then.
        wait_seconds: longest time an attempt may wait for the service.
        average: snapshots are means of the weights over the last `every` steps. Costs one addition of the weights
            every step, and a copy of them; helps against noise.
        watch: with a probe, ask it once more a stride after each jump, and undo the jump (weights, buffers and
            optimizer state) if the loss is then more than a tenth worse than before it. Costs one probe a jump, and
            a copy of all that in between.
        refine: where training is deterministic (the gradient of the probe's loss is that of the step: full batch,
            physics losses), jumps are refined: the descent goes on with quasi-Newton steps from where a jump landed, for
            as long as the loss falls faster for each evaluation than it does for each step of training. At most so many
            evaluations a jump, by default as many as there are steps in a window; 0: none. Every 20 of them training has
            a step, which is forgotten again. Needs a probe that returns the loss as a tensor, and at the trainer up to 69
            times the parameters' memory, and no more than 256 MiB: not done beyond 3.5 million parameters, nor with
            `on_jump`, nor with several ranks.
        mode: ``"auto"`` jumps; ``"observe"`` takes snapshots, asks and probes, and never jumps, while `Ahead.stats` tells
            what it would have done; ``"off"`` only counts steps, and contacts no service. The same on all ranks.
        strict: raise what goes wrong at the service, in its answers or in a callback into the training loop, out of
            ``optimizer.step()``, instead of going on without jumps: for finding out why nothing happens, not for long
            runs. Under torch.distributed whatever launched the ranks must then end them all.
        optimizer_state: what becomes of the optimizer's state of the parameters that jumped: ``"keep"``; ``"auto"``: kept,
            but after a refined jump means of gradients are zeroed, which lead away from there; ``"reset"``
            forgets it, step counts included; ``"rescale"`` multiplies means of gradients by r and of their squares by
            r², where r is the root of the probe's loss after over before the jump, at most 1 (without such losses it
            stays). LBFGS forgets its history under both. Undoing a jump puts it back.
        filter: ``filter(name, parameter)`` says which parameters take part; by default those that require gradients
            and belong to the optimizer. Only float64, float32, bfloat16 and float16 ones can. Chosen once: parameters
            that join the optimizer later take part after closing and attaching again.
        search: in which order the probe looks at the predictions (`koopcast.hook.policy`); by default `Walk`.
        tensorboard: object with ``add_scalar(tag, value, global_step)``: gets ``koopcast/...`` scalars for each attempt.
        encoding: how snapshots travel, as in `Client.open_job`.
        wire_dtype: element type of answers, likewise.
        snapshots: who holds them. ``"server"``: they are pushed. ``"trainer"``: they stay in a ring here, as many as the
            operator's window and one more, and only Gram rows go to the service and coefficients come back: kilobytes,
            whatever the model's size. ``"auto"``: the service, unless the parameters are sharded (FSDP2, DTensors), where each
            rank keeps a ring of its parts.
        window_device: where such a ring lives, by default where the parameters do; ``"cpu"`` beside a GPU: in page-locked
            memory.
        meeting_seconds: longest time that ranks under torch.distributed wait for each other at a jump step. If one died
            or comes later, the others go on training without jumps.
        token: bearer token; by default the environment's ``KOOPCAST_TOKEN``.
        ca: certificate of the authority that signed the service's, for TLS.
        insecure: allow a plain connection to another host.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument that cannot work, before anything was attached.
        MissingExtra: `target` is None and the server is not installed.
    """
    stepping = check_trainer(model, optimizer)
    check_callables(probe=probe, on_jump=on_jump, filter=filter, search=search)
    timing = check_timing(every, lag, wait_seconds, average, meeting_seconds)
    check_refine(refine)
    check_flags(watch=watch, strict=strict)
    check_choice("mode", mode, MODES)
    check_choice("optimizer_state", optimizer_state, POLICIES)
    check_choice("snapshots", snapshots, HOLDERS)
    if wire_dtype is not None:
        check_choice("wire_dtype", wire_dtype, list(ELEMENT_BYTES))
    check_writer(tensorboard)
    question = check_question(operator, operators, horizons, every, probed=probe is not None)
    question = replace(question, rates=check_learning_rate(learning_rate, stepping))
    job_operator = operator if operator is not None else question.operators[0]
    trained = parameters_of(stepping)
    trainer = Trainer(
        model, stepping, Selection(model, filter, averaged=timing.averaging > 1, trained=trained)
    )
    check_encoding(Layout(trainer.selection.specs), encoding, wire_dtype)
    settings = JobSettings(
        check_job_name(job) if job is not None else _unique_name(),
        job is None,
        trainer.selection.specs,
        every,
        job_operator,
        timing.averaging,
        encoding,
        wire_dtype,
    )
    looped = LoopSettings(mode == "off", strict, optimizer_state, learning_rate)
    regime = Regime(probed=probe is not None and tells_noise(stepping))
    schedule = JumpSchedule(
        timing.every,
        job_operator.snapshots_wanted,
        timing.lag,
        watching=watch and probe is not None and mode == "auto",
        pausing=mode == "auto",
    )
    counters = Counters()
    if looped.off:
        return Ahead(settings.name, trainer, schedule, None, None, looped, counters)
    ring = check_holding(snapshots, window_device, trainer, settings, lag)
    ranks = Ranks(timing.meeting_seconds)
    settings = replace(settings, name=ranks.tell_text(settings.name))
    parts = Parts(
        Service(target, token, ca, insecure),
        settings,
        ring,
        timing,
        question,
        Callbacks(probe, on_jump, strict),
        search or Walk(),
        Scalars(tensorboard, counters),
        mode == "observe",
        counters,
        regime,
        plan_refining(
            refine,
            trainer.selection,
            regime,
            window_steps=every * job_operator.snapshots_wanted,
            halting=optimizer_state == "auto",
            possible=on_jump is None,
        ),
    )
    side = assemble(trainer, parts, ranks)
    return Ahead(settings.name, trainer, schedule, ranks, side, looped, counters, regime)


def _unique_name() -> str:
    host = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname())[
        :64
    ]
    return f"{host or 'trainer'}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
