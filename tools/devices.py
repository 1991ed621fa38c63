"""Real block devices, file systems and daemons, for the tools that break them: loop devices, mounts, qemu, nbdkit.

Not here: what is done with them (`blocks.py`, `realfaults.py`).

* Nothing outlives the process, even one that is killed: mounts are in a mount namespace of its own, loop devices clear
  themselves with their last descriptor, daemons die with their parent, crash images are memory files.
* What the machine lacks is a `Skip` with the reason, and the Debian package that would help.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MIB = 1 << 20
PACKAGES = {
    "qemu-storage-daemon": "qemu-system-common",
    "nbdkit": "nbdkit",
    "nbdfuse": "libnbd-bin",
    "fusermount3": "fuse3",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
}
MKFS = {
    "ext4": ["-q", "-F", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"],
    "xfs": ["-q", "-f", "-K"],
    "btrfs": ["-q", "-f", "-K", "-m", "single"],
}
SIZES = {"ext4": 24 * MIB, "xfs": 300 * MIB, "btrfs": 112 * MIB}  # the least that mkfs takes, but for ext4
MOUNT_OPTIONS = {"ext4": "", "xfs": "nouuid", "btrfs": ""}
_MS_NOATIME, _MS_PRIVATE, _MS_REC, _MNT_DETACH = 1024, 1 << 18, 1 << 14, 2
MS_REMOUNT, MS_RDONLY = 32, 1
_CLONE_NEWNS, _PR_SET_PDEATHSIG = 0x20000, 1
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _BLKFLSBUF, _BTRFS_FORGET = 0x4C82, 0x4C0A, 0x1261, 0x50009405
_LO_AUTOCLEAR, _LO_DIRECT_IO = 4, 16
_START_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)


class Skip(Exception):
    """The machine lacks something; the text says what."""


def need(*programs: str, file_systems: tuple[str, ...] = (), root: bool = True, fuse: bool = False) -> None:
    """Raises `Skip` unless we are root and have the programs, file systems and devices."""
    if root and os.geteuid() != 0:
        raise Skip("needs root, for loop devices and mounts")
    missing = [name for name in (*programs, *(f"mkfs.{kind}" for kind in file_systems)) if not shutil.which(name)]
    if missing:
        packages = " ".join(sorted({PACKAGES.get(name, name) for name in missing}))
        raise Skip(f"needs {', '.join(missing)}: apt-get install --no-install-recommends {packages}")
    known = Path("/proc/filesystems").read_text("ascii").split()
    for kind in (*file_systems, *(["fuse"] if fuse else [])):
        if kind not in known:
            raise Skip(f"this kernel has no {kind}")
    for device in (["/dev/loop-control"] if root else []) + (["/dev/fuse"] if fuse else []):
        if not os.path.exists(device):
            raise Skip(f"there is no {device}")


def make_mounts_private() -> None:
    """Moves this process, and those it starts later, into a mount namespace of their own. Before any thread."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "/")


def mount(source: str, point: str, kind: str, flags: int = 0, options: str | None = None) -> None:
    """Mounts without access times; raises `OSError`."""
    if options is None:
        options = MOUNT_OPTIONS.get(kind, "")
    arguments = (source.encode(), point.encode(), kind.encode(), _MS_NOATIME | flags, options.encode())
    _check(_libc.mount(*arguments), f"{source} on {point}")


def unmount(point: str, *, lazily: bool = False) -> None:
    """Unmounts; raises `OSError`."""
    _check(_libc.umount2(point.encode(), _MNT_DETACH if lazily else 0), point)


@contextmanager
def mounted(source: str, point: str, kind: str, flags: int = 0, options: str | None = None) -> Iterator[str]:
    """Has it mounted; detaches it even where it is still in use."""
    Path(point).mkdir(exist_ok=True, parents=True)
    mount(source, point, kind, flags, options)
    try:
        yield point
    finally:
        try:
            unmount(point)
        except OSError:
            with suppress(OSError):
                unmount(point, lazily=True)


class Loop:
    """A loop device over an open file; it clears itself once it is closed here and unmounted."""

    def __init__(self, backing_fd: int, *, direct: bool = False) -> None:
        flags = _LO_AUTOCLEAR | (_LO_DIRECT_IO if direct else 0)
        info = struct.pack("<5Q4I160x16x", 0, 0, 0, 0, 0, 0, 0, 0, flags)
        config = struct.pack("<II", backing_fd, 512 if not direct else 4096) + info + bytes(64)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            while True:
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                self.path = f"/dev/loop{number}"
                self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(self.fd, _LOOP_CONFIGURE, config)
                    break
                except OSError as error:
                    os.close(self.fd)
                    if error.errno != 16:  # EBUSY: somebody was faster
                        raise
        finally:
            os.close(control)

    def forget(self) -> None:
        """Drops what the kernel has cached of the device: its file was changed underneath."""
        fcntl.ioctl(self.fd, _BLKFLSBUF)

    def close(self) -> None:
        """Gives the device back. Does nothing the second time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextmanager
def loop_over(path: str, *, direct: bool = False) -> Iterator[Loop]:
    """Has a loop device over a file by name."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if direct else 0))
    try:
        loop = Loop(fd, direct=direct)
    finally:
        os.close(fd)
    try:
        yield loop
    finally:
        loop.close()


def make_file_system(kind: str, path: str, size: int) -> None:
    """Makes a file of ``size`` bytes with an empty file system in it."""
    with open(path, "wb") as file:
        file.truncate(size)
    command = [f"mkfs.{kind}", *MKFS[kind], path] + ([str(size // 4096)] if kind == "ext4" else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skip(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")


@contextmanager
def daemon(*command: str, ready: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Has a program running until ``ready()`` is true and from then on; it dies with us."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 (no threads here)
    )
    try:
        deadline = time.monotonic() + _START_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                said = process.communicate()[0].decode(errors="replace").strip()
                raise Skip(f"{command[0]} did not start: {said[-300:]}")
            time.sleep(0.005)
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def logged_disk(raw: str, log: str, export: str) -> Iterator[int]:
    """Has a file ``export`` through which every write and flush to ``raw`` goes, noted in ``log`` in order.

    Yields a descriptor for marks: what is written through it beyond the file system is noted in the log without a
    flush. The log is whole once this has ended.
    """
    for path in (log, export):
        Path(path).write_bytes(b"")
    size = os.stat(raw).st_size
    quick = "cache.no-flush=on"  # the flushes are in the log: they need not reach the device below
    command = [
        "qemu-storage-daemon",
        *("--blockdev", f"driver=file,node-name=d0,filename={raw},{quick},discard=unmap"),
        *("--blockdev", f"driver=file,node-name=l0,filename={log},{quick}"),
        *(
            "--blockdev",
            "driver=blklogwrites,node-name=w0,file=d0,log=l0,log-sector-size=512,log-super-update-interval=1",
        ),
        *("--export", f"type=fuse,id=e0,node-name=w0,mountpoint={export},writable=on"),
    ]
    with daemon(*command, ready=lambda: os.stat(export).st_size == size):
        marks = os.open(export, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield marks
        finally:
            os.close(marks)


@contextmanager
def filtered_disk(folder: str, raw: str, *filters: str, writable: bool = True) -> Iterator[str]:
    """Has a file behind which nbdkit's filters stand between us and ``raw``; yields its path."""
    socket, export = f"{folder}/nbd.socket", f"{folder}/nbd.disk"
    with suppress(FileNotFoundError):
        os.unlink(socket)
    Path(export).write_bytes(b"")
    names = [word for word in filters if word.startswith("--")]
    rules = [word for word in filters if not word.startswith("--")]
    size = os.stat(raw).st_size
    with (
        daemon("nbdkit", "-f", "-U", socket, *names, "file", raw, *rules, ready=lambda: os.path.exists(socket)),
        daemon("nbdfuse", export, "--unix", socket, ready=lambda: os.stat(export).st_size == size),
    ):
        try:
            yield export
        finally:
            with suppress(OSError):
                unmount(export, lazily=True)


def forget_btrfs() -> None:
    """Lets the kernel forget the btrfs devices that are not mounted: an older image of one may come next."""
    with suppress(FileNotFoundError):
        control = os.open("/dev/btrfs-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                fcntl.ioctl(control, _BTRFS_FORGET, bytearray(4096))
        finally:
            os.close(control)


def drop_caches() -> None:
    """Evicts every clean page of the machine."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _check(result: int, name: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
