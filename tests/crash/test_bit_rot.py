"""Random damage to synced files: refused, harmless, or of what nothing that survived tells; and verification names it.

The trials are those of `tools/bitrot.py`, which runs many more. The second half shows that they find wrong answers.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mmwal.config import WalConfig
from mmwal.entry import Finding, VerifyReport
from mmwal.errors import DamageError
from mmwal.format.segment import DATA_OFFSET, PAGE_BYTES
from mmwal.log.segment import segment_name
from mmwal.manager import WalManager
from mmwal.testing.simulator import SimulatedDisk
from tests.conftest import _require_compiled_kernel
from tools import bitrot
from tools.bitrot import Life, Trials, merged, read_log, read_store, verified

pytestmark = pytest.mark.filterwarnings("ignore::mmwal.errors.DurabilityWarning")


@pytest.mark.parametrize("trials", [pytest.param(60, id="60"), pytest.param(5000, id="5000", marks=[pytest.mark.slow])])
@pytest.mark.parametrize("name", ["log-c", "log-py", "store-c", "store-py"])
def test_no_damage_loses_silently_what_something_proves_or_escapes_verification(name: str, trials: int) -> None:
    if name.endswith("c"):
        _require_compiled_kernel()
    work = Trials(name, seed=7)
    work.run(trials)
    report = work.report()
    assert report["violation"] is None
    assert report["trials"] == trials
    assert report["verify_missed"] == 0
    assert report["refused"] >= trials // 20
    assert report["harmless"] >= trials // 20
    assert report["verify_found"] > trials // 3
    marked = [counts for stage, counts in report["stages"].items() if "idle" in stage or "clean" in stage]
    assert [name for counts in marked for name in counts if name.startswith("silent_loss")] == []


def test_end_of_an_idle_log_zeroed_with_its_mark_is_refused(kernel: Any) -> None:
    disk = SimulatedDisk()
    config = WalConfig(wal_dir="/wal", dimension=4, segment_size=64 << 10, sync_interval_ms=0, kernel=kernel.NAME)
    wal = WalManager(config, disk=disk)
    lsns = [wal.log_insert(n, [1.0, 2.0, 3.0, 4.0]) for n in range(3)]
    for _ in range(3):
        disk.advance(0.06)
        disk.run_workers()
    assert wal.last_lsn > lsns[-1]  # the idle mark
    disk = disk.kill()
    file = disk.open(f"/wal/{segment_name(0)}", writable=True)
    file.zero(DATA_OFFSET, PAGE_BYTES)
    file.sync()
    with pytest.raises(DamageError):
        WalManager(config, disk=disk)


def test_same_seed_makes_the_same_trials() -> None:
    first, second = Trials("store-py", seed=2), Trials("store-py", seed=2)
    for work in (first, second):
        work.run(20)
    assert {**first.report(), "seconds": 0, "trials_per_second": 0} == {
        **second.report(),
        "seconds": 0,
        "trials_per_second": 0,
    }


def test_reports_of_workers_add_up() -> None:
    work = Trials("log-py", seed=2)
    work.run(10)
    whole = merged([work.report(), work.report()])
    assert whole["trials"] == 20
    assert sum(sum(counts.values()) for counts in whole["table"].values()) == 20


# ---- the trials find what is wrong


def blind(disk: Any, life: Life) -> VerifyReport:
    return VerifyReport()


def alarming(disk: Any, life: Life) -> VerifyReport:
    return VerifyReport(findings=(Finding(what="entry", severity="damaged", path="/store/wal/x", problem="none"),))


def raising(disk: Any, life: Life) -> VerifyReport:
    if disk.digest() != life.disk.digest():
        raise KeyError("damage")
    return verified(disk, life)


def writing(disk: Any, life: Life) -> VerifyReport:
    disk.create("/store/wal/verify.tmp")
    return verified(disk, life)


def blind_for_rows(disk: Any, life: Life) -> VerifyReport:
    report = verified(disk, life)
    return replace(report, findings=tuple(one for one in report.findings if one.what != "row"))


def pointing_elsewhere(disk: Any, life: Life) -> VerifyReport:
    report = verified(disk, life)
    return replace(report, findings=tuple(replace(one, path="/store/wal/elsewhere") for one in report.findings))


@pytest.mark.parametrize(
    ("verifier", "name", "problem"),
    [
        (blind, "log-py", "verification finds nothing"),
        (alarming, "log-py", "alarms on a whole directory"),
        (raising, "log-py", "verification raised KeyError"),
        (writing, "log-py", "verification changed the disk"),
        (blind_for_rows, "store-py", "another vector than was written, and verification does not name it"),
        (pointing_elsewhere, "store-py", "verification names another file"),
    ],
    ids=lambda value: getattr(value, "__name__", "") or None,
)
def test_wrong_verification_is_found(verifier: Any, name: str, problem: str) -> None:
    work = Trials(name, seed=1, verify=verifier)
    work.run(400)
    assert problem in work.report()["violation"]["problem"]


def losing(read: Callable[..., Any]) -> Callable[..., Any]:
    def shorter(disk: Any, config: Any) -> Any:
        return read(disk, config)[:-1]

    return shorter


def changing(disk: Any, config: Any) -> Any:
    entries = read_log(disk, config)
    return [*entries[:-1], (*entries[-1][:3], b"another", entries[-1][4])] if entries else entries


def failing(disk: Any, config: Any) -> Any:
    raise ZeroDivisionError("damage")


def forgetting(disk: Any, config: Any) -> Any:
    found = read_store(disk, config)
    return {id: row for id, row in found.items() if id != min(found, key=str)}


def renaming(disk: Any, config: Any) -> Any:
    return {id: (row[0], {"another": 1}, row[2]) for id, row in read_store(disk, config).items()}


@pytest.mark.parametrize(
    ("openers", "name", "problem"),
    [
        ({"open_log": losing(read_log)}, "log-py", "silent loss from LSN"),
        ({"open_log": changing}, "log-py", "no prefix of what was logged"),
        ({"open_log": failing}, "log-py", "opening raised ZeroDivisionError"),
        ({"open_store": forgetting}, "store-py", "a state that never was"),
        ({"open_store": renaming}, "store-py", "has metadata"),
    ],
    ids=["losing", "changing", "failing", "forgetting", "renaming"],
)
def test_wrong_opening_is_found_and_its_line_replays_it(openers: Any, name: str, problem: str) -> None:
    work = Trials(name, seed=1, **openers)
    work.run(400)
    found = work.report()["violation"]
    assert problem in found["problem"]
    place = found["line"].partition(" ")[2]
    seed, _, trial = place.rpartition(".")
    again = Trials(name, seed=1, **openers)
    again.run_life(seed, 0, int(trial))
    assert again.report()["violation"] == found


def test_recovery_that_cuts_at_the_first_damaged_frame_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmwal.recovery import tail

    monkeypatch.setattr(tail, "_check_end", lambda *_: None)
    work = Trials("log-py", seed=1)
    work.run(400)
    assert "is proven durable" in work.report()["violation"]["problem"]


def test_command_ends_with_its_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bitrot.py", "--trials", "10", "--target", "log"])
    assert bitrot.main() == 0
    shown = capsys.readouterr().out
    assert "verify missed" in shown
    assert "refused" in shown
