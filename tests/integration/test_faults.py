"""What goes wrong between client and service: interrupted calls, slow readers, forks, ends of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

import koopcast
from koopcast.v1 import prediction_pb2, snapshot_pb2
from raw import Stubs, stubs, upload
from services import RunningService, running_service

SUPPORT = Path(__file__).resolve().parents[1] / "support"
WEIGHTS = {"w": np.arange(6.0)}
LARGE = 2_000_000
READER_SECONDS = 2.0


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """A service that gives a reader two seconds, and that must have had no error to tell of at the end."""
    limits = {"KOOPCAST_STALL_SECONDS": str(READER_SECONDS)}
    with running_service(
        "--memory-limit", "2GiB", "--http", "off", "--log-level", "warning", environment=limits
    ) as running:
        yield running
    assert running.errors == []


@pytest.fixture
def raw(service: RunningService) -> Iterator[Stubs]:
    with stubs(service.target) as made:
        yield made


def large(index: int) -> dict[str, np.ndarray]:
    ramp = np.arange(LARGE, dtype=np.float32) / LARGE
    return {"w": ramp + np.float32(0.9**index) * np.cos(100 * ramp)}


def filled(client: koopcast.Client, name: str, count: int = 4) -> koopcast.Job:
    job = client.open_job(name, large(0), stride=1)
    for step in range(count):
        job.push(step, large(step))
    return job


@pytest.mark.parametrize("horizons", [[5.0], [5.0, 6.0, 7.0]], ids=len)
def test_a_reader_that_reads_nothing_keeps_no_push_waiting(
    raw: Stubs, client: koopcast.Client, job_name: str, horizons: list[float]
) -> None:
    job = filled(client, job_name)
    request = prediction_pb2.PredictAheadRequest(job=job_name, horizons=horizons, include_base=True)
    stalled = raw.predictions.PredictAhead(request, timeout=60)
    time.sleep(0.3)
    started = time.monotonic()
    assert job.push(4, large(4)).outcome == "accepted"
    assert job.status().step == 4
    assert time.monotonic() - started < READER_SECONDS / 2
    stalled.cancel()


def test_a_reader_that_reads_nothing_is_given_up(raw: Stubs, client: koopcast.Client, job_name: str) -> None:
    """Even answers too large to be combined at once: sixty-four of 8 MB."""
    job = filled(client, job_name)
    horizons = [float(step) for step in range(1, 65)]
    stalled = raw.predictions.PredictAhead(
        prediction_pb2.PredictAheadRequest(job=job_name, horizons=horizons), timeout=60
    )
    time.sleep(0.3)
    assert job.push(4, large(4), timeout_seconds=4 * READER_SECONDS).outcome == "accepted"
    assert job.predict_ahead(5).base_step == 4
    with pytest.raises(grpc.RpcError):
        list(stalled)


def test_a_push_cancelled_at_its_commit_is_either_stored_or_not(
    raw: Stubs, client: koopcast.Client, job_name: str
) -> None:
    """The same snapshot again then counts once: a window that holds it twice would be a silent fault."""
    job = client.open_job(job_name, large(0), stride=1)
    for step in range(10):
        call = raw.snapshots.PushSnapshot(iter(upload(job, large(step), step)), timeout=20)
        next(call)
        time.sleep(0.008 * step)
        call.cancel()
        assert job.push(step, large(step)).outcome in {"accepted", "duplicate"}
        status = job.status()
        assert (status.snapshots_held, status.step, status.snapshots_accepted) == (step + 1, step, step + 1)


def test_a_writer_that_takes_over_begins_above_the_upload_under_way(
    raw: Stubs, client: koopcast.Client, service: RunningService, job_name: str
) -> None:
    old = client.open_job(job_name, WEIGHTS, stride=1)
    old.push(0, WEIGHTS)
    pending = threading.Event()

    def messages() -> Iterator[snapshot_pb2.PushSnapshotRequest]:
        first, *rest = upload(old, WEIGHTS, 7, segment=2)
        yield first
        pending.wait(10)
        yield from rest

    call = raw.snapshots.PushSnapshot(messages(), timeout=20)
    assert next(call).HasField("ready")
    with koopcast.connect(service.target) as other:
        new = other.open_job(job_name, WEIGHTS, stride=1, take_over=True)
        assert new.segment == 3
        pending.set()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert new.push(0, WEIGHTS).snapshots_held == 1


def test_cancelled_calls_leave_no_memory_behind(
    raw: Stubs, client: koopcast.Client, service: RunningService, job_name: str
) -> None:
    weights = {"w": np.ones(1000)}
    job = client.open_job(job_name, weights, stride=1)
    messages = upload(job, weights, 0)
    process = psutil.Process(service.process.pid)

    def cancel(count: int) -> int:
        for _ in range(count):
            call = raw.snapshots.PushSnapshot(iter(messages[:2]), timeout=20)
            next(call)
            call.cancel()
        time.sleep(0.2)
        return int(process.memory_info().rss)

    before = cancel(300)
    assert cancel(2000) - before < 8 << 20
    assert job.push(0, weights).outcome == "accepted"


def test_replacing_and_closing_during_an_upload_frees_the_memory(
    raw: Stubs, client: koopcast.Client, service: RunningService, job_name: str
) -> None:
    """A window that a stuck upload still refers to must be gone all the same, as the accounts say."""
    process = psutil.Process(service.process.pid)
    sizes, calls = [], []
    tensors = {"w": koopcast.TensorSpec("float32", (5_000_000,))}
    weights = {"w": np.ones(5_000_000, np.float32)}
    for _ in range(6):
        job = client.open_job(job_name, tensors, stride=1, if_exists="replace", take_over=True)
        for step in range(3):
            job.push(step, {"w": weights["w"] * np.float32(0.9**step)})
        call = raw.snapshots.PushSnapshot(iter(upload(job, weights, 3)[:1]), timeout=60)
        assert next(call).HasField("ready")
        calls.append(call)  # not collected: that would cancel it
        sizes.append(process.memory_info().rss)
    # Kept, each round's window would add at least four times a snapshot; the allocator's own ups and downs are two.
    assert sizes[-1] - sizes[0] < 10 * weights["w"].nbytes


def test_a_duplicate_of_an_older_step_keeps_the_weights_at_hand(
    client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    for step in range(4):
        job.push(step, {"w": WEIGHTS["w"] * 0.9**step})
    assert job.push(1, {"w": WEIGHTS["w"] * 0.9}).outcome == "duplicate"
    prediction = job.predict_ahead(1e-9)
    np.testing.assert_allclose(prediction.weights["w"], WEIGHTS["w"] * 0.9**3)


def test_a_push_that_may_have_arrived_leaves_the_weights_to_the_service(
    raw: Stubs, service: RunningService, client: koopcast.Client, job_name: str
) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    for step in range(4):
        job.push(step, {"w": WEIGHTS["w"] * 0.9**step})
    service.pause()
    try:
        with pytest.raises(koopcast.DeadlineExceeded):
            job.push(4, {"w": WEIGHTS["w"] * 0.9**4}, timeout_seconds=0.2)
    finally:
        service.resume()
    list(raw.snapshots.PushSnapshot(iter(upload(job, {"w": WEIGHTS["w"] * 0.9**4}, 4))))
    np.testing.assert_allclose(job.predict_ahead(1e-9).weights["w"], WEIGHTS["w"] * 0.9**4)


@pytest.mark.parametrize(
    "call",
    [
        lambda job: job.predict_ahead(10**400),
        lambda job: job.predict_ahead(np.array([1.0, 2.0])),
        lambda job: job.predict_ahead(1, operators=koopcast.Operator()),
        lambda job: job.predict_ahead(1, operators=["auto"]),
        lambda job: job.predict_ahead(1, timeout_seconds=float("inf")),
        lambda job: job.push(0, WEIGHTS, timeout_seconds="soon"),
        lambda job: job.report(7, accepted=True),
        lambda job: job.report("x", accepted=True, loss_before="low"),
        lambda job: koopcast.connect(None, ca="/nowhere"),
        lambda job: koopcast.connect("127.0.0.1:1", timeout_seconds=float("nan")),
    ],
)
def test_bad_arguments_are_koopcasts_own_errors(client: koopcast.Client, job_name: str, call: object) -> None:
    job = client.open_job(job_name, WEIGHTS, stride=1)
    with pytest.raises(koopcast.InvalidArgument) as caught:
        call(job)  # type: ignore[operator]  # one of the functions above
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [({"x": koopcast.TensorSpec("float32", (-2, -3))}, ValueError), ({7: np.ones(3)}, TypeError)],
)
def test_bad_tensors_are_koopcasts_own_errors(
    client: koopcast.Client, job_name: str, tensors: dict[str, object], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        client.open_job(job_name, tensors, stride=1)
    assert isinstance(caught.value, koopcast.InvalidArgument)


def test_numbers_of_numpy_are_numbers(client: koopcast.Client, job_name: str) -> None:
    job = client.open_job(job_name, {"w": koopcast.TensorSpec("float64", [6])}, stride=1)  # type: ignore[arg-type]  # a list, as JSON has it
    for step in range(3):
        job.push(np.int64(step), {"w": WEIGHTS["w"] * 0.9**step}, clock=np.float32(step))  # type: ignore[arg-type]  # numpy's
    prediction = job.predict_ahead(np.float32(2))  # type: ignore[call-overload]  # numpy's
    assert len({prediction, prediction}) == 1
    assert prediction != job.predict_ahead(2)
    job.report(prediction, accepted=np.bool_(True), loss_before=np.float32(1), loss_after=float("nan"))  # type: ignore[arg-type]  # numpy's
    assert job.status().jumps_accepted == 1


def test_a_block_that_fails_is_heard_of_though_the_service_is_gone() -> None:
    with running_service("--http", "off") as service, koopcast.connect(service.target) as client:
        job = client.open_job("left", WEIGHTS, stride=1)
        service.kill()
        with pytest.raises(ZeroDivisionError), job:
            raise ZeroDivisionError


def test_closing_a_client_whose_service_hangs_takes_two_seconds_not_two_a_job() -> None:
    with running_service("--http", "off") as service:
        client = koopcast.connect(service.target)
        jobs = [client.open_job(f"job-{index}", WEIGHTS, stride=1) for index in range(5)]
        service.pause()
        started = time.monotonic()
        client.close()
        assert time.monotonic() - started < 5
        assert len(jobs) == 5
        service.resume()


def test_two_threads_that_close_release_the_embedded_service_once() -> None:
    with koopcast.connect(None) as kept:
        other = koopcast.connect(None)
        other.open_job("open", WEIGHTS, stride=1)
        threads = [threading.Thread(target=other.close) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert kept.jobs()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, which must end within 30 s."""
    preamble = "import os, signal, sys, threading, time\nimport numpy as np\nimport koopcast\nW = {'w': np.arange(6.0)}\n"
    return subprocess.run(
        [sys.executable, "-c", preamble + code, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SUPPORT)},
    )


def test_the_interpreter_ends_with_clients_open_and_leaves_no_directory(tmp_path: Path) -> None:
    code = (
        "import tempfile; tempfile.tempdir = sys.argv[1]\n"
        "client = koopcast.connect(None)\n"
        "client.open_job('open', W, stride=1).push(0, W)\n"
        "print(oct(os.stat(os.path.dirname(client.target[5:])).st_mode & 0o777))\n"
    )
    done = python(code, tempfile.mkdtemp(dir=tmp_path, prefix="t"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "0o700\n", "")
    assert list(tmp_path.glob("t*/*")) == []


def test_a_forked_child_uses_its_own_connection_and_leaves_the_lease() -> None:
    """gRPC skips its fork handlers where one of its threads is busy at that moment; the child's call may then fail.

    The parent must not notice in either case.
    """
    code = (
        "client = koopcast.connect(sys.argv[1], timeout_seconds=10)\n"
        "job = client.open_job('forked', W, stride=1)\n"
        "job.push(0, W)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        print(client.job_status('forked').step, flush=True)\n"
        "    except koopcast.KoopcastError as error:\n"
        "        print(error.code.name, flush=True)\n"
        "    client.close()\n"
        "    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1], job.push(1, W).outcome)\n"
    )
    with running_service("--http", "off") as service:
        done = python(code, service.target)
    of_child, of_parent = done.stdout.split("\n")[:2]
    assert of_parent == "0 accepted", done.stderr
    assert of_child in {"0", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, done.stderr


def test_a_forked_child_is_told_that_it_cannot_embed_a_service() -> None:
    code = (
        "client = koopcast.connect(None)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        koopcast.connect(None)\n"
        "    except koopcast.FailedPrecondition as error:\n"
        "        print(error, flush=True)\n"
        "        sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client.jobs())\n"
    )
    done = python(code)
    assert "'spawn'" in done.stdout, done.stderr
    assert done.stdout.endswith("7 []\n"), done.stderr


def test_an_interrupted_push_frees_the_way_at_once(service: RunningService) -> None:
    code = (
        "client = koopcast.connect(sys.argv[1])\n"
        "large = {'w': np.ones(10_000_000, np.float32)}\n"
        "job = client.open_job('interrupted', large, stride=1)\n"
        "def interrupt():\n"
        "    while not client.job_status('interrupted').lease.held: pass\n"
        "    time.sleep(0.03); os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt).start()\n"
        "try:\n"
        "    while True: job.start_segment(); job.push(0, large)\n"
        "except KeyboardInterrupt:\n"
        "    job.start_segment(); print(job.push(0, large).outcome)\n"
        "job.close(); client.close()\n"
        "print([t.name for t in threading.enumerate() if t.name.startswith('koopcast')])\n"
    )
    done = python(code, service.target)
    assert (done.returncode, done.stdout) == (0, "accepted\n[]\n"), done.stderr


def test_closing_a_client_ends_the_calls_of_other_threads(service: RunningService, job_name: str) -> None:
    client = koopcast.connect(service.target)
    job = client.open_job(job_name, large(0), stride=1)
    ended: list[BaseException] = []

    def push() -> None:
        try:
            for step in range(1000):
                job.push(step, large(0))
        except koopcast.KoopcastError as error:
            ended.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    time.sleep(0.2)
    client.close()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(ended[0], koopcast.Cancelled | koopcast.FailedPrecondition | koopcast.LeaseLost)


def test_closing_a_client_ends_an_answer_that_another_thread_waits_for(job_name: str) -> None:
    with running_service("--http", "off") as service:
        client = koopcast.connect(service.target)
        job = filled(client, job_name)
        ended: list[BaseException] = []

        def predict() -> None:
            try:
                job.predict_ahead(5)
            except koopcast.KoopcastError as error:
                ended.append(error)

        service.pause()
        thread = threading.Thread(target=predict)
        thread.start()
        time.sleep(0.2)
        client.close()
        thread.join(10)
        service.resume()
        assert not thread.is_alive()
        assert isinstance(ended[0], koopcast.Cancelled)


def test_an_interrupted_answer_frees_the_way_at_once(service: RunningService) -> None:
    code = (
        "client = koopcast.connect(sys.argv[1])\n"
        "large = {'w': np.ones(4_000_000, np.float32)}\n"
        "job = client.open_job('interrupted-answer', large, stride=1, operator=koopcast.Operator(window=3, always_move=True))\n"
        "for step in range(3): job.push(step, {'w': large['w'] * 0.5**step})\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "try:\n"
        "    while True: job.predict_ahead([5, 6, 7])\n"
        "except KeyboardInterrupt:\n"
        "    print(job.predict_ahead(5).moved)\n"
        "job.close(); client.close()\n"
    )
    done = python(code, service.target)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_a_second_sigterm_changes_nothing() -> None:
    with running_service("--http", "off") as service:
        deadline = time.monotonic() + 10
        while service.process.poll() is None:
            service.process.send_signal(signal.SIGTERM)
            time.sleep(0.005)
            assert time.monotonic() < deadline
        assert service.process.returncode == 0


def test_two_services_cannot_share_a_unix_socket(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    with running_service("--http", "off", "--listen", address) as first:
        second = subprocess.run(
            [sys.executable, "-m", "koopcast_server", "serve", "--http", "off", "--listen", address],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert second.returncode == 2
        assert "another service answers there" in second.stderr
        with koopcast.connect(address) as client:
            assert client.jobs() == []
        first.kill()
        assert (tmp_path / "socket").exists()
    with running_service("--http", "off", "--listen", address), koopcast.connect(address) as client:
        assert client.jobs() == []
    assert not (tmp_path / "socket").exists()
