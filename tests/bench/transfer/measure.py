"""Takes turns: every contender moves the same bytes in every round, so that a slow minute is slow for all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from koopcast.shared_memory import LEAST_SNAPSHOT_BYTES
from recording import cpu_seconds, quantiles
from services import running_service
from transfer.contenders import (
    Contender,
    Flight,
    Koopcast,
    Plain,
    RawSocket,
    Transport,
    flight_is_installed,
    peer,
)

__all__ = ["Workplace", "bulk", "small", "sustained"]

YARDSTICK = "raw TCP socket"


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the certificates and sockets are, and how often everything is repeated.

    Attributes:
        directory: with the files of `credentials.make_credentials`.
        rounds: times each contender's turn comes.
        serve: further options of `koopcast serve`.
    """

    directory: Path
    rounds: int
    serve: tuple[str, ...] = ()

    @contextlib.contextmanager
    def service(self, transport: Transport) -> Iterator[tuple[str, Path | None, int]]:
        """A service reached over `transport`: its target, the authority's certificate for TLS, its process id."""
        options = list(self.serve)
        ca = self.directory / "ca.pem" if transport == "tls" else None
        if transport == "unix":
            options += ["--listen", f"unix:{self.directory}/koopcast.sock"]
        if ca is not None:
            options += [
                "--tls-cert",
                str(self.directory / "server.pem"),
                "--tls-key",
                str(self.directory / "server.key"),
            ]
        with running_service(*options) as service:
            yield service.target, ca, service.process.pid


def bulk(workplace: Workplace, transport: Transport, nbytes: int) -> dict[str, Any]:
    """One array of `nbytes` at a time, there and back: seconds of every turn, by direction and contender."""
    elements = nbytes // 4
    array = np.random.default_rng(1).standard_normal(elements, np.float32)
    out = np.ones(elements, np.float32)  # resident
    times: dict[str, dict[str, list[float]]] = {"push": {}, "answer": {}, "answer without combination": {}}
    sending: dict[str, list[float]] = {}
    receiving: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        target, ca, process_id = stack.enter_context(workplace.service(transport))
        ours = list(_ours(transport, target, elements, ca))
        for each in ours:
            each.receiver = process_id
        rivals = _rivals(stack, workplace.directory, transport, nbytes)
        for lap in range(workplace.rounds + 1 + 2):  # 2 laps more fill the window, 1 warms up
            kept = lap >= 3
            for contender in [*ours, *rivals]:
                before, over_there = time.process_time(), cpu_seconds(contender.receiver)
                _note(times["push"], contender, _seconds(contender.send, array), kept=kept)
                _note(sending, contender, time.process_time() - before, kept=kept)
                _note(receiving, contender, cpu_seconds(contender.receiver) - over_there, kept=kept)
                if isinstance(contender, Koopcast):
                    contender.settle()
            array *= np.float32(0.999)
            if lap >= 2:
                for contender in [ours[0], *rivals]:
                    seconds = _seconds(contender.fetch, out)
                    _note(times["answer"], contender, seconds, kept=kept)
                    if isinstance(contender, Koopcast):
                        contender.settle()
                        rest = seconds - contender.first_bytes()
                        _note(times["answer without combination"], contender, rest, kept=kept)
                        contender.settle()
        for contender in [*ours, *rivals]:
            contender.close()
    return {
        "transport": transport,
        "bytes": nbytes,
        "seconds": times,
        "sender's CPU seconds": sending,
        "receiver's CPU seconds": receiving,
    }


def small(workplace: Workplace, transport: Transport, nbytes: int, count: int) -> dict[str, Any]:
    """Latency of pushes of so few bytes: quantiles in seconds by contender, and the sender's CPU seconds for each."""
    elements = nbytes // 4
    array = np.random.default_rng(1).standard_normal(elements, np.float32)
    times: dict[str, list[float]] = {}
    sending: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        target, ca, _ = stack.enter_context(workplace.service(transport))
        contenders: list[Contender] = [
            Koopcast(target, elements, ca=ca),
            Koopcast.streaming(target, elements, ca=ca),
            *_rivals(stack, workplace.directory, transport, nbytes),
        ]
        for lap in range(count + 20):
            for contender in contenders:
                before = time.process_time()
                _note(times, contender, _seconds(contender.send, array), kept=lap >= 20)
                _note(sending, contender, time.process_time() - before, kept=lap >= 20)
                if isinstance(contender, Koopcast):
                    contender.settle()
            array *= np.float32(0.999)
        for contender in contenders:
            contender.close()
    found = {
        name: {
            **dict(zip(("p50", "p99"), quantiles(values, 0.5, 0.99), strict=True)),
            "sender's CPU": sum(sending[name]) / len(sending[name]),
        }
        for name, values in times.items()
    }
    return {"transport": transport, "bytes": nbytes, "count": count, "seconds": found}


def sustained(workplace: Workplace, nbytes: int, windows: Sequence[int], pushes: int) -> dict[str, Any]:
    """Pushes back to back over TCP, Gram rows and all: seconds a push, until the service has nothing left to do."""
    elements = nbytes // 4
    array = np.random.default_rng(1).standard_normal(elements, np.float32)
    times: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        target, _, _ = stack.enter_context(workplace.service("tcp"))
        ours = {f"koopcast, window {window}": Koopcast(target, elements, window=window) for window in windows}
        addresses = stack.enter_context(peer("socket", nbytes, workplace.directory))
        raw = RawSocket("tcp", addresses["tcp"], workplace.directory)
        for name, contender in ours.items():
            for _ in range(int(name.rpartition(" ")[2]) + 1):  # full, and every page of it touched
                contender.send(array)
                array *= np.float32(0.999)
        raw.send(array)
        for _ in range(workplace.rounds):
            for name, contender in ours.items():
                times.setdefault(name, []).append(_seconds(_push_many, contender, array, pushes) / pushes)
            times.setdefault(YARDSTICK, []).append(_seconds(_push_many, raw, array, pushes) / pushes)
        contenders: list[Contender] = [*ours.values(), raw]
        for each in contenders:
            each.close()
    return {"bytes": nbytes, "pushes": pushes, "seconds": times}


def _push_many(contender: Contender, array: npt.NDArray[np.float32], pushes: int) -> None:
    for _ in range(pushes):
        contender.send(array)
    if isinstance(contender, Koopcast):
        contender.settle()


def _ours(transport: Transport, target: str, elements: int, ca: Path | None) -> Iterator[Koopcast]:
    """Pushes as they are by default first, and with what makes a difference."""
    yield Koopcast(target, elements, ca=ca)
    if transport == "tcp":
        yield Koopcast(target, elements, keeping=True)
    if elements * 4 >= LEAST_SNAPSHOT_BYTES:
        yield Koopcast(target, elements, ca=ca, sharing=False)


def _rivals(
    stack: contextlib.ExitStack, directory: Path, transport: Transport, nbytes: int
) -> list[Contender]:
    """The others over this transport, and the raw TCP socket that everything is a share of."""
    sockets = stack.enter_context(peer("socket", nbytes, directory))
    yardstick = RawSocket("tcp", sockets["tcp"], directory)
    yardstick.name = YARDSTICK
    rivals: list[tuple[Contender, str]] = [(yardstick, sockets["process"])]
    if transport != "tcp":
        rivals.append((RawSocket(transport, sockets[transport], directory), sockets["process"]))
    plain = stack.enter_context(peer("plain", nbytes, directory))
    rivals.append((Plain(transport, plain[transport], directory), plain["process"]))
    if flight_is_installed():
        flights = stack.enter_context(peer("flight", nbytes, directory))
        rivals.append((Flight(transport, flights[transport], directory), flights["process"]))
    for contender, process in rivals:
        contender.receiver = int(process)
    return [contender for contender, _ in rivals]


def _seconds(work: Callable[..., object], *arguments: Any) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def _note(times: dict[str, list[float]], contender: Contender, seconds: float, *, kept: bool) -> None:
    if kept:
        times.setdefault(contender.name, []).append(seconds)
