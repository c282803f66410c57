"""The benchmark itself, small: every contender moves what it is given, and the tables say what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from credentials import make_credentials
from recording import MIB, write_into
from transfer import shm
from transfer.contenders import TRANSPORTS, Contender, Plain, RawSocket, Transport, peer
from transfer.measure import Workplace, bulk
from transfer.tables import markdown


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("transfer")
    make_credentials(made)
    return made


@pytest.mark.parametrize(("kind", "contender"), [("socket", RawSocket), ("plain", Plain)])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_was_sent_comes_back(
    directory: Path, transport: Transport, kind: str, contender: type[RawSocket | Plain]
) -> None:
    """The peers keep what they were sent in the memory that they answer from."""
    array = np.arange(3 * MIB // 4 + 5, dtype=np.float32)
    out = np.zeros_like(array)
    with peer(kind, array.nbytes, directory) as addresses:
        one: Contender = contender(transport, addresses[transport], directory)
        one.send(array)
        one.fetch(out)
        one.close()
    assert np.array_equal(out, array)


def test_rounds_and_tables(directory: Path) -> None:
    case = bulk(Workplace(directory, rounds=2), "tcp", MIB)
    for direction in ("push", "answer"):
        assert {"koopcast", "raw TCP socket", "plain protobuf-bytes stream"} <= case["seconds"][
            direction
        ].keys()
        assert all(len(times) == 2 and min(times) > 0 for times in case["seconds"][direction].values())
    text = markdown({"machine": "here", "bulk": [case], "small": [], "sustained": []})
    assert "| 1 MiB | TCP | raw TCP socket |" in text
    assert "PyArrow Flight" in text


def test_shared_memory(directory: Path) -> None:
    found = shm.measure(2 * MIB, rounds=2, directory=directory)
    assert all(len(times) == 2 for times in found["seconds"].values())
    assert "| prototype, checksums |" in shm.markdown({"machine": "here", **found})


def test_tables_are_put_where_they_belong(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n\n<!-- figures -->\nold\n<!-- end of figures -->\n\nafter\n")
    write_into(page, "figures", "new")
    assert page.read_text() == "before\n\n<!-- figures -->\n\nnew\n\n<!-- end of figures -->\n\nafter\n"
    with pytest.raises(ValueError, match="no lines"):
        write_into(page, "other", "new")
