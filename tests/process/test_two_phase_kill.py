"""kill -9 of a coordinator or of a participant in a process of its own: everybody agrees once it is back (item 106)."""

import logging
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mmwal.errors import DecisionPendingError, PrepareFailedError
from mmwal.two_phase import TwoPhaseCommit
from tests.conftest import _require_compiled_kernel
from tests.process.conftest import environment
from tests.process.parties import STORES, Remote, open_store, operations

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")

KERNELS = ["c", "py"]


@contextmanager
def process(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.process.parties", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "open\n", child.stderr.read()
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("kernel", KERNELS)
def test_killed_coordinator_leaves_stores_that_agree(tmp_path: Path, kernel: Any) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    rng, committed, first = random.Random(kernel), set[int](), 0
    for _ in range(6):
        with process("coordinator", str(tmp_path), kernel, str(first)) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(rng.randrange(1, 25))]
            time.sleep(rng.random() / 100)
            child.kill()
            lines += child.stdout.readlines()
        told = [line.split() for line in lines]
        committed |= {int(number) for what, number in told if what == "commit"}
        in_flight = int(told[-1][1]) + 1
        stores = {name: open_store(tmp_path / name, kernel) for name in STORES}
        with TwoPhaseCommit(stores, tmp_path / "decisions", kernel=kernel) as tpc:
            assert tpc.list_in_doubt() == []
        found = {name: set(store.ids()) for name, store in stores.items()}
        for store in stores.values():
            assert store.list_in_doubt() == []
            store.close()
        assert found["east"] == found["west"]
        if in_flight in found["east"]:
            committed.add(in_flight)
        assert found["east"] == committed | ({"shared"} if committed else set())
        first = in_flight + 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_killed_participant_catches_up(tmp_path: Path, kernel: Any, caplog: pytest.LogCaptureFixture) -> None:
    if kernel == "c":
        _require_compiled_kernel()
    caplog.set_level(logging.ERROR, "mmwal")
    address = str(tmp_path / "line")
    serve = ("participant", address, str(tmp_path / "west"), kernel)
    rng, committed, refused, number = random.Random(kernel), set[int](), 0, 0
    west = Remote(address)
    with open_store(tmp_path / "east", kernel) as east:
        tpc: TwoPhaseCommit | None = None
        for _ in range(6):
            with process(*serve) as child:
                tpc = tpc or TwoPhaseCommit({"east": east, "west": west}, tmp_path / "decisions", kernel=kernel)
                tpc.recover()
                assassin = threading.Timer(rng.random() / 10, child.kill)
                assassin.start()
                while child.poll() is None:
                    number += 1
                    with suppress(PrepareFailedError):
                        transaction = tpc.prepare(operations(number))
                        with suppress(DecisionPendingError):
                            transaction.commit(timeout_ms=20)
                        committed.add(number)
                        continue
                    refused += 1
                assassin.join()
            Path(address).unlink()
        with process(*serve):
            assert tpc is not None
            tpc.recover()
            assert tpc.list_in_doubt() == []
            assert set(east.ids()) == west.ids() == committed | {"shared"}
            tpc.close()
    assert committed
