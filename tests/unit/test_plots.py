"""Figures of a job: what is drawn, and that nothing the service may say stops them."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

import koopcast
from koopcast.prediction import Block, Mode, Summary
from koopcast.status import HistoryPoint, JobStatus, Lease
from koopcast_server.plots import FoundBlock, PlotError, draw_job, find_block, write_plot
from koopcast_server.plots.modes import plotted_modes

PNG = b"\x89PNG\r\n\x1a\n"
NAN = math.nan
MODES = (
    Mode(1.02 + 0j, 0.5, -505.0, 0.01),
    Mode(1 + 0j, 0.2, math.inf, 0.02),
    Mode(0.6 + 0.3j, 0.1, 25.0, 0.3),
    Mode(0.6 - 0.3j, 0.1, 25.0, 0.3),
    Mode(0.1 + 0j, 0.1, 4.3, NAN),
)


def block(name: str = "fc1", modes: tuple[Mode, ...] = MODES) -> Block:
    values = tuple(mode.eigenvalue for mode in modes)
    told = (name, 6, len(modes), 1.02, 0.1, 0.2, 0.4, 30, True, False, values, 0.3)
    return Block(*told, modes=modes)


def point(step: int, radius: float = 1.1, error: float = 0.2, *, moved: bool = True) -> HistoryPoint:
    return HistoryPoint(step, radius, error, 2 * error, 100.0, error, moved)


def status(blocks: tuple[Block, ...], history: tuple[HistoryPoint, ...] = (), total: int = 0) -> JobStatus:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    summary = Summary(total or len(blocks), 1, 0, 1.02, 0.2, 0.4, 0.3)
    return JobStatus(
        name="mlp",
        owner="alice",
        tensors={"w": koopcast.TensorSpec("float32", (6,))},
        stride=10,
        operator=koopcast.Operator(partition="tensor"),
        window_dtype="float32",
        wire_dtype="float32",
        segment=1,
        step=40,
        snapshots_held=5,
        snapshots_accepted=5,
        parameters=6,
        memory_bytes=1000,
        bytes_received=216,
        bytes_sent=24,
        predictions=1,
        jumps_accepted=1,
        jumps_rejected=2,
        last_prediction_seconds=0.5,
        created=now,
        pushed=now,
        lease=Lease(False, 0.0, ""),
        blocks=blocks,
        summary=summary if blocks else None,
        history=history,
    )


def figure_of(told: JobStatus) -> Figure:
    return draw_job(FoundBlock(told, told.blocks[0], 0))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


# ------------------------------------------------------------------------------------------------------- modes


def test_conjugate_modes_are_one_with_their_energy_together() -> None:
    modes = plotted_modes(MODES)
    assert [mode.label for mode in modes] == ["1", "2", "3, 4", "5"]
    assert modes[2].energy == pytest.approx(0.2)
    assert modes[2].eigenvalues == (0.6 + 0.3j, 0.6 - 0.3j)
    assert [mode.grows for mode in modes] == [True, False, False, False]


def test_modes_without_a_finite_eigenvalue_are_left_out_and_the_others_keep_their_numbers() -> None:
    broken = (Mode(complex(NAN, 0.0), 0.5, NAN, NAN), Mode(complex(math.inf, 0.0), 0.5, NAN, NAN))
    assert [mode.label for mode in plotted_modes((*broken, MODES[1]))] == ["3"]


def test_a_complex_mode_without_its_partner_stands_alone() -> None:
    assert [mode.label for mode in plotted_modes((MODES[2], MODES[1]))] == ["1", "2"]


# ------------------------------------------------------------------------------------------------------ figures


def test_the_panels_show_the_figures(tmp_path: Path) -> None:
    history = (point(10, 1.5), point(20, 1.25, moved=False), point(30, NAN, NAN), point(40, 1.0, 0.1))
    figure = figure_of(status((block(),), history))
    assert len(figure.axes) == 5
    circle, energies, times, radius, errors = figure.axes
    drawn = [complex(*np.asarray(dots.get_offsets())[0]) for dots in circle.collections]
    assert drawn == [mode.eigenvalue for mode in MODES]
    areas = [
        float(np.asarray(dots.get_sizes())[0])
        for dots in circle.collections
        if isinstance(dots, PathCollection)
    ]
    assert areas[0] == max(areas)
    assert areas[2] == areas[3]
    heights = [bar.get_height() for bar in energies.patches if bar.get_height() > 0]  # type: ignore[attr-defined]  # bars
    assert heights == pytest.approx([0.5, 0.2, 0.2, 0.1])
    points = {tuple(xy) for dots in times.collections for xy in np.asarray(dots.get_offsets()).tolist()}
    assert {(505.0, 0.01), (25.0, 0.3)} <= points
    assert max(across for across, _ in points) > 505.0  # what never ends lies at the right end
    assert len(points) == 3  # the mode without a residual has no place
    lines = {line.get_label(): np.asarray(line.get_ydata(), float) for line in [*radius.lines, *errors.lines]}
    np.testing.assert_array_equal(lines["spectral radius"], [1.5, 1.25, NAN, 1.0])
    np.testing.assert_array_equal(lines["nothing moved"], [1.25])
    np.testing.assert_array_equal(lines["back-test"], [0.2, 0.2, NAN, 0.1])
    np.testing.assert_array_equal(lines["linear extrapolation, back-test"], [0.4, 0.4, NAN, 0.2])
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left") for axes in figure.axes)
    title = figure.get_suptitle()
    assert "mlp, step 40: block fc1, 6 parameters, rank 5" in title
    assert "back-test 0.2 (linear extrapolation 0.4), predicted error 0.3, moves" in title


ANSWERS: dict[str, tuple[tuple[Mode, ...], tuple[HistoryPoint, ...]]] = {
    "nothing": ((), ()),
    "nothing known": (
        (Mode(complex(NAN, NAN), NAN, NAN, NAN),),
        (point(10, NAN, NAN), point(20, math.inf, math.inf)),
    ),
    "hardly anything known": ((Mode(0.5 + 0j, NAN, NAN, NAN),), (point(10, NAN, NAN),)),
    "beyond any plot": (
        (Mode(complex(1.7e308, 1.7e308), 1.0, -5e-324, 1.7e308), Mode(1e-300 + 0j, 0.0, 1e-300, 0.0)),
        (point(10, 1e150, 1e150), point(2**53, 0.5, 1e-300)),
    ),
    "one of each": ((Mode(1 + 0j, 1.0, math.inf, 0.0),), (point(10),)),
    "many": (
        tuple(Mode(complex(0.99**n, 0.0), 1 / 64, 10.0 + n, 0.1) for n in range(64)),
        (point(0, 0.0, 0.0),) * 512,
    ),
}


@pytest.mark.parametrize(("modes", "history"), ANSWERS.values(), ids=ANSWERS)
def test_any_answer_is_drawn(
    tmp_path: Path, modes: tuple[Mode, ...], history: tuple[HistoryPoint, ...]
) -> None:
    told = status((block(modes=modes),), history)
    write_plot(FoundBlock(told, told.blocks[0], 0), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_a_block_that_does_not_move_says_so() -> None:
    still = replace(
        block(modes=()), backtest_error=NAN, backtest_error_linear=NAN, predicted_error=NAN, moved=False
    )
    figure = figure_of(status((still,)))
    assert texts(figure).count("no modes:\nthe window shows no motion") == 3
    assert texts(figure).count("no answers yet") == 2
    assert (
        "back-test none (linear extrapolation none), predicted error none, declines" in figure.get_suptitle()
    )


def test_the_suffix_says_the_format(tmp_path: Path) -> None:
    told = status((block(),))
    write_plot(FoundBlock(told, told.blocks[0], 0), tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text("utf-8")
    with pytest.raises(ValueError, match="not supported"):
        write_plot(FoundBlock(told, told.blocks[0], 0), tmp_path / "a.nothing")


# ----------------------------------------------------------------------------------------------- finding a block

BLOCKS = tuple(block(f"n[{number}]", modes=()) for number in range(2500))


def ask(job: str, first: int, most: int) -> JobStatus:
    """A service with 2,500 blocks that tells of at most 1,000 at once."""
    assert job == "mlp"
    return status(BLOCKS[first : first + min(most, 1000)] or (), total=len(BLOCKS))


def test_a_block_is_found_by_number_and_by_name() -> None:
    for wanted, number in [
        (None, 0),
        ("0", 0),
        ("2499", 2499),
        ("n[0]", 0),
        ("n[1000]", 1000),
        ("n[2499]", 2499),
    ]:
        found = find_block(ask, "mlp", wanted)
        assert (found.number, found.block.name, found.total) == (number, f"n[{number}]", 2500)


def test_a_block_that_is_not_there_is_named() -> None:
    for wanted in ("n[2500]", "9" * 5000):
        with pytest.raises(PlotError, match=r"has no block .*; it has 2500, numbered from 0: n\[0\], n\[1\]"):
            find_block(ask, "mlp", wanted)


def test_a_number_beyond_the_last_block_is_refused() -> None:
    def ask_beyond(job: str, first: int, most: int) -> JobStatus:
        return replace(ask(job, 0, 1), blocks=BLOCKS[first : first + most])

    with pytest.raises(PlotError, match="has no block '2500'"):
        find_block(ask_beyond, "mlp", "2500")


def test_a_job_without_operator_says_what_it_needs() -> None:
    for wanted in (None, "network"):
        with pytest.raises(PlotError, match="no operator yet: it needs 3 snapshots and holds 5"):
            find_block(lambda *_: status(()), "mlp", wanted)


# ------------------------------------------------------------------------------------------------- without matplotlib


def test_without_matplotlib_the_command_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.argv = ['koopcast', 'plot', 'a']\n"
        "from koopcast_server.__main__ import main\nmain()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert run.returncode == 2
    assert run.stderr == "koopcast: plots need matplotlib: pip install 'koopcast[demo]'\n"
