"""Locks across processes: they end with their holder, whatever ends it, and no child inherits them."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmwal.disk.posix import PosixDisk
from tests.disk.conftest import SCRIPT_HEAD, Script, environment

Holder = Callable[[str, str], "subprocess.Popen[str]"]


@pytest.fixture
def holder() -> Iterator[Holder]:
    """Start a process that takes a lock and keeps it until it is killed."""
    started = []

    def hold(method: str, path: str) -> "subprocess.Popen[str]":
        code = SCRIPT_HEAD + f"held = disk.{method}(args[0]); print('held', flush=True); sys.stdin.read()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, path],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_lock_of_another_process_names_it_and_ends_when_it_is_killed(
    disk: PosixDisk, root: str, holder: Holder
) -> None:
    process = holder("lock", f"{root}/lock")
    with pytest.raises(BlockingIOError, match=f"process {process.pid};") as caught:
        disk.lock(f"{root}/lock")
    assert caught.value.holder_pid == process.pid  # type: ignore[attr-defined]
    process.send_signal(signal.SIGKILL)
    process.wait()
    disk.lock(f"{root}/lock").release()


def test_reader_in_another_process_is_seen_until_it_is_killed(disk: PosixDisk, root: str, holder: Holder) -> None:
    disk.create(f"{root}/control").close()
    process = holder("lock_shared", f"{root}/control")
    held = disk.lock(f"{root}/control")  # the two kinds of lock do not see each other
    assert disk.has_readers(f"{root}/control")
    held.release()
    process.kill()
    process.wait()
    assert not disk.has_readers(f"{root}/control")


@pytest.mark.parametrize("content", [b"", b"4711", b"4711 another-boot\n", b"\xff\xfe", b"-1 x", b"1 2 3"])
def test_pid_is_told_only_if_this_boot_wrote_it(disk: PosixDisk, root: str, content: bytes) -> None:
    path = Path(root, "lock")
    path.write_bytes(content)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process") as caught:
            disk.lock(str(path))
    assert caught.value.holder_pid is None  # type: ignore[attr-defined]


def test_pid_in_an_unheld_file_locks_nothing(disk: PosixDisk, root: str) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    Path(root, "lock").write_text(f"1 {boot_id}")
    disk.lock(f"{root}/lock").release()


def test_lock_file_names_its_holder_and_nothing_else(disk: PosixDisk, root: str) -> None:
    Path(root, "lock").write_text("a much longer line than any process would leave in this file " * 3)
    held = disk.lock(f"{root}/lock")
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    assert Path(root, "lock").read_text() == f"{os.getpid()} {boot_id}"
    held.release()


def test_lock_is_taken_anew_if_its_file_is_replaced_meanwhile(
    disk: PosixDisk, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, replaced = fcntl.flock, []

    def replace_and_lock(fd: int, operation: int) -> None:
        if not replaced:
            replaced.append(True)
            os.unlink(f"{root}/lock")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", replace_and_lock)
    held = disk.lock(f"{root}/lock")
    with pytest.raises(BlockingIOError):
        disk.lock(f"{root}/lock")
    held.release()


def test_reader_needs_no_right_to_write(disk: PosixDisk, root: str) -> None:
    path = Path(root, "control")
    path.write_bytes(b"content")
    path.chmod(0o400)
    before = path.stat()
    held = disk.lock_shared(str(path))
    assert disk.has_readers(str(path))
    held.release()
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (7, before.st_mtime_ns, before.st_ctime_ns)


def test_forked_child_does_not_keep_the_parents_locks(script: Script, root: str) -> None:
    printed = script(
        """
import select
writer, control = args[0] + "/lock", args[0] + "/control"
disk.create(control).close()
held, reading = disk.lock(writer), disk.lock_shared(control)
ready, go_on = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.close(go_on[1])
    seen = disk.has_readers(control)
    try:
        disk.lock(writer)
        seen = False            # closing the child's descriptor must not have ended the parent's lock
    except BlockingIOError as error:
        seen = seen and error.holder_pid == os.getppid()
    os.write(ready[1], b"1" if seen else b"0")
    os.read(go_on[0], 1)        # until the parent has looked
    held.release()              # nothing is left to release
    reading.release()
    os._exit(0)
print("child sees both locks:", os.read(ready[0], 1) == b"1")
held.release()
reading.release()
disk.lock(writer)
print("readers beside the living child:", disk.has_readers(control))
os.close(go_on[1])
os.waitpid(child, 0)
""",
        root,
    )
    assert printed == ["child sees both locks: True", "readers beside the living child: False"]
