"""The `koopcast` command, server installed: serve, demo, jobs, plot, version."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table

import koopcast
from koopcast.version import PROTOCOL_VERSION, VERSION
from koopcast_server.allocator import keep_freed_memory
from koopcast_server.config import Settings
from koopcast_server.engine import DeviceMissing
from koopcast_server.identity import TokenFileError
from koopcast_server.logs import configure_logging
from koopcast_server.service import Service, StartupError

__all__ = ["app", "main"]

app = typer.Typer(
    name="koopcast",
    help="Predicts where a network's weights are going, and jumps them there.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)

_EXIT_USAGE = 2
_DIGITS = "digits"
"""The demo's own task."""
_PIPE_COLUMNS = 200
"""Width of a table that no terminal shows."""
_SWITCH_SECONDS = 0.0005
"""How long a worker may keep the interpreter from the event loop; Python's default of 5 ms adds up over workers."""


@app.command()
def serve(  # noqa: PLR0913  # one option a setting
    listen: Annotated[
        str | None, typer.Option(help="gRPC address, host:port or unix:/path. [127.0.0.1:50051]")
    ] = None,
    http: Annotated[
        str | None, typer.Option(help='HTTP address, host:port, or "off". [127.0.0.1:8080]')
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. [auto]")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate chain, for gRPC and HTTP.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM private key.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of identity:token lines (or KOOPCAST_TOKENS).")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen anywhere without TLS and token.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Memory of all jobs, e.g. 8GiB. [half of what is free]")
    ] = None,
    job_ttl: Annotated[
        float | None, typer.Option(help="Seconds after which jobs without a writer end. [3600]")
    ] = None,
    lease_seconds: Annotated[
        float | None, typer.Option(help="Seconds a lease lives without a call. [60]")
    ] = None,
    drain_seconds: Annotated[
        float | None, typer.Option(help="Seconds open calls get after SIGTERM. [10]")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker threads. [one a core, at most 4]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one computation. [cores / workers]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [info]")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json. [console]")] = None,
) -> None:
    """Run the service: gRPC and the HTTP status API in one process.

    Every option can be given as an environment variable, KOOPCAST_LISTEN and so on. SIGTERM drains: health turns
    NOT_SERVING, open calls finish within the bound, and the exit status is 0.
    """
    given = {
        "listen": listen,
        "http": http,
        "device": device,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "token_file": token_file,
        "insecure": insecure,
        "memory_limit_bytes": memory_limit,
        "job_ttl_seconds": job_ttl,
        "lease_seconds": lease_seconds,
        "drain_seconds": drain_seconds,
        "workers": workers,
        "threads": threads,
        "log_level": log_level,
        "log_format": log_format,
    }
    settings = _settings({name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level, settings.log_format)
    keep_freed_memory()
    try:
        asyncio.run(_serve(settings))
    except (StartupError, DeviceMissing, TokenFileError) as error:
        _fail(str(error))


@app.command()
def demo(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures as JSON.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot of both loss curves goes.")] = Path("demo.png"),
    seed: Annotated[int, typer.Option(help="Seed of the first weights and the order of batches.")] = 0,
    task: Annotated[str, typer.Option(help="What to train; --list tells the names.")] = _DIGITS,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adamw, sgd-momentum, adadelta, sgd, adagrad or adam, at its tuned rate; digits have their own. [adamw]"
        ),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the tasks and the data they need.")] = False,
) -> None:
    """Train one network twice, plainly and with koopcast, and compare: by default on MNIST digits."""
    try:
        from koopcast_server.demo import (  # noqa: PLC0415  # loads matplotlib
            DemoError,
            run_demo,
            run_task,
            task_table,
        )
    except ModuleNotFoundError as error:
        _fail(f"the demo needs {error.name}: pip install 'koopcast[demo]'")
    if task == _DIGITS and optimizer is not None:
        _fail("--optimizer goes with --task; the digits have SGD with momentum, tuned on the spot")
    if listing:
        _console().print(task_table())
        return
    try:
        if task == _DIGITS:
            run_demo(json_file, plot, seed)
        else:
            run_task(task, optimizer or "adamw", json_file, plot, seed)
    except DemoError as error:
        _fail(str(error), status=1)


@app.command()
def jobs(
    target: Annotated[str, typer.Argument(help="Address of the service.")] = "127.0.0.1:50051",
    ca: Annotated[str | None, typer.Option(help='CA certificate for TLS, or "system".')] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a plain connection to another host.")
    ] = False,
) -> None:
    """List your jobs at a service. The token is read from KOOPCAST_TOKEN."""
    try:
        with koopcast.connect(target, ca=ca, insecure=insecure, timeout_seconds=10.0) as client:
            statuses = client.jobs()
    except koopcast.KoopcastError as error:
        _fail(str(error), status=1)
    table = Table(
        Column("job", no_wrap=True),
        "step",
        "snapshots",
        "parameters",
        "memory",
        "jumps",
        "predictable",
        "writer",
        "last push",
    )
    for status in statuses:
        table.add_row(
            status.name,
            "-" if status.step is None else str(status.step),
            f"{status.snapshots_held}/{'all' if status.operator.window == 'segment' else status.operator.window}",
            f"{status.parameters:,}",
            f"{status.memory_bytes / 2**20:.1f} MiB",
            f"{status.jumps_accepted} taken, {status.jumps_rejected} refused",
            "-" if status.predictability is None else f"{status.predictability:.2f}",
            status.lease.holder if status.lease.held else "none",
            "-"
            if status.pushed is None
            else f"{(datetime.now(UTC) - status.pushed).total_seconds():.0f} s ago",
        )
    _console().print(table if statuses else f"no jobs at {target}")


@app.command()
def plot(
    job: Annotated[str, typer.Argument(help="Name of the job.")],
    target: Annotated[str, typer.Argument(help="Address of the service.")] = "127.0.0.1:50051",
    output: Annotated[
        Path | None, typer.Option(help="Where the figure goes; its suffix says in which format. [JOB.png]")
    ] = None,
    block: Annotated[
        str | None, typer.Option(help="Block whose modes are shown: its number, from 0, or its name. [0]")
    ] = None,
    ca: Annotated[str | None, typer.Option(help='CA certificate for TLS, or "system".')] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow a plain connection to another host.")
    ] = False,
) -> None:
    """Plot a job's operators: eigenvalues, energies, time constants, residuals, and their history.

    The token is read from KOOPCAST_TOKEN.
    """
    try:
        from koopcast_server import plots  # noqa: PLC0415  # loads matplotlib
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        _fail(f"plots need {missing}: pip install 'koopcast[demo]'")
    path = output if output is not None else Path(f"{job}.png")
    try:
        with koopcast.connect(target, ca=ca, insecure=insecure, timeout_seconds=10.0) as client:
            plots.write_plot(plots.find_block(client.job_status, job, block), path)
    except koopcast.KoopcastError as error:
        _fail(str(error), status=1)
    except plots.PlotError as error:
        _fail(str(error), status=1)
    except (
        OSError,
        ValueError,
    ) as error:  # a folder that is not there, a format that matplotlib does not know
        _fail(f"cannot write {path}: {error}", status=1)
    typer.echo(str(path))


@app.command()
def version() -> None:
    """Print the versions of the package and of the protocol."""
    typer.echo(f"koopcast {VERSION} (protocol {PROTOCOL_VERSION}, Python {sys.version.split()[0]})")


def main() -> None:
    """Run the command."""
    app()


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=_PIPE_COLUMNS)


def _settings(given: dict[str, Any]) -> Settings:
    if str(given.get("http", os.environ.get("KOOPCAST_HTTP", ""))).lower() in {"off", "none"}:
        given["http"] = None
    try:
        return Settings(**given)
    except ValidationError as error:
        problems = "; ".join(
            f"--{str(problem['loc'][0]).replace('_', '-')}: {problem['msg']}" for problem in error.errors()
        )
        _fail(problems)


async def _serve(settings: Settings) -> None:
    sys.setswitchinterval(_SWITCH_SECONDS)
    service = Service(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await service.start()
    gc.freeze()  # libraries live as long as the service: looking through them would hold all trainers up, 0.1 s at a time
    typer.echo(f"koopcast {VERSION} on {service.engine.describe()}")
    typer.echo(f"gRPC  {service.grpc_address}")
    typer.echo(f"HTTP  {service.http_address or 'off'}")
    sys.stdout.flush()
    await stop.wait()
    await service.drain()
    for number in (signal.SIGTERM, signal.SIGINT):  # a second one must not turn a clean end into a failure
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def _fail(message: str, status: int = _EXIT_USAGE) -> NoReturn:
    typer.secho(f"koopcast: {message}", err=True, fg=typer.colors.RED)
    raise typer.Exit(status)


if __name__ == "__main__":
    main()
