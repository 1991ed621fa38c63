"""Imports run one way through the rooms, and only `disk` talks to the operating system.

The rules are data (`ORDER`, `SYSTEM_MODULES`); `breaches` judges one module's source by them and `room_cycle`
the whole package. For the order, imports inside functions and under TYPE_CHECKING count like any other; for a
cycle only those made while loading. The checker has tests of its own below.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mmwal"

# Lowest first. A room (a folder or module directly in the package) may import its own tier and those below.
ORDER: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("config", "entry", "custom", "verdicts"),
    ("format", "kernel", "disk"),
    ("log",),
    ("state",),
    ("checkpoint",),
    ("recovery",),
    ("search",),
    ("manager", "store", "apply", "opening", "transaction", "prepared", "two_phase", "aio"),
    ("observe", "replication", "cli"),
)
TIER = {room: tier for tier, rooms in enumerate(ORDER) for room in rooms}

# The test kit may import any room but cli; no room imports the kit. The package's face may import all others.
TEST_KIT = "testing"
FACE = "__init__"  # importing it (`import mmwal`) brings in everything, so only the top tier may
ROOM_OF_MODULE = {"__main__": "cli"}

# What these rooms may not import: they reach the operating system and the clock through `disk`.
SYSTEM_MODULES = frozenset(
    {"ctypes", "fcntl", "mmap", "os", "posix", "shutil", "socket", "subprocess", "tempfile", "time"}
)
SYSTEM_FREE_ROOMS = frozenset({"format", "kernel", "log", "state", "checkpoint"})


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module, by its absolute name."""

    name: str
    line: int
    at_load: bool  # executed when the importing module is loaded, so that a cycle of these would break


def imports_of(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Yield every import in `source`; `from mmwal import log` counts as importing mmwal.log."""
    package = module if is_package else module.rpartition(".")[0]
    for node, at_load in _statements_and_calls(ast.parse(source), at_load=True):
        names: list[str] = []
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=base, level=level):
                stem = _absolute(base, level, package)
                names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "mmwal" else [stem]
            case ast.Call(func=called, args=[ast.Constant(value=str(target)), *_]):
                if ast.unparse(called) in ("import_module", "importlib.import_module", "__import__"):
                    names = [target]
        for name in names:
            yield Import(name=name, line=node.lineno, at_load=at_load)


def _statements_and_calls(parent: ast.AST, *, at_load: bool) -> Iterator[tuple[ast.stmt | ast.expr, bool]]:
    for node in ast.iter_child_nodes(parent):
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, ast.stmt | ast.expr):
            yield node, at_load
        yield from _statements_and_calls(node, at_load=at_load and not later and not typing_only)


def _absolute(base: str | None, level: int, package: str) -> str:
    if level == 0:
        return base or ""
    anchor = package.split(".")[: len(package.split(".")) - (level - 1)]
    return ".".join([*anchor, *([base] if base else [])])


def room_of(module: str) -> str:
    """Name the room of a module: `mmwal.log.cursor` is in `log`, `mmwal` itself is the face."""
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return ROOM_OF_MODULE.get(first, first) or FACE


def target_room(imported: str) -> str | None:
    """Name the room an import reaches, or None for a module outside the package."""
    if imported.partition(".")[0] != "mmwal":
        return None
    room = room_of(imported)
    # A public name taken from the face (`from mmwal import WalConfig`) is an import of the face.
    return room if room in TIER or room == TEST_KIT else FACE


def breaches(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """List the ways in which one module breaks the rules, each as a line that names the place."""
    room = room_of(module)
    if room not in (*TIER, TEST_KIT, FACE):
        return [f"{module}: the room {room!r} has no place in ORDER: give it one"]
    found = []
    for imported in imports_of(source, module, is_package=is_package):
        target = target_room(imported.name)
        if target is None:
            top = imported.name.partition(".")[0]
            broken = room in SYSTEM_FREE_ROOMS and top in SYSTEM_MODULES
            reason = "only disk may"
        else:
            broken, reason = not _may_import(room, target), "against the order"
        if broken:
            found.append(f"{module}:{imported.line}: {room} imports {imported.name}: {reason}")
    return found


def _may_import(room: str, target: str) -> bool:
    if room == target:
        return True
    if target == TEST_KIT:
        return False
    if room in (TEST_KIT, FACE):
        return target != "cli"
    if target == FACE:
        return TIER[room] == len(ORDER) - 1
    return TIER[target] <= TIER[room]


def room_cycle(sources: dict[str, str], packages: frozenset[str] = frozenset()) -> list[str]:
    """Return the rooms of a cycle of imports made while loading, in order; empty if there is none."""
    reaches: dict[str, set[str]] = {}
    for module, source in sources.items():
        room = room_of(module)
        if room == FACE:
            continue
        for imported in imports_of(source, module, is_package=module in packages):
            target = target_room(imported.name)
            if imported.at_load and target not in (None, FACE, room):
                reaches.setdefault(room, set()).add(str(target))
    finished: set[str] = set()

    def search(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room not in finished:
            for target in sorted(reaches.get(room, ())):
                if cycle := search(target, [*path, room]):
                    return cycle
            finished.add(room)
        return []

    return next((cycle for room in sorted(reaches) if (cycle := search(room, []))), [])


def package_modules() -> dict[str, Path]:
    """Map every module of the package, by its dotted name, to its file."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


# ---- the package


def test_package_imports_keep_the_order() -> None:
    found = [
        breach
        for module, path in package_modules().items()
        for breach in breaches(path.read_text("utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert found == []


def test_package_has_no_cycle_of_rooms() -> None:
    modules = package_modules()
    packages = frozenset(module for module, path in modules.items() if path.name == "__init__.py")
    assert room_cycle({module: path.read_text("utf-8") for module, path in modules.items()}, packages) == []


def test_package_modules_are_found() -> None:
    assert {"mmwal", "mmwal.errors", "mmwal.disk"} <= set(package_modules())


# ---- the checker


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("mmwal.log.scan", "import mmwal.recovery", id="upwards"),
        pytest.param("mmwal.log.scan", "import mmwal.recovery.recover as r", id="upwards-into-a-module"),
        pytest.param("mmwal.log.scan", "from mmwal.state.matrix import Matrix", id="upwards-from"),
        pytest.param("mmwal.log.scan", "from mmwal import store", id="upwards-through-the-face"),
        pytest.param("mmwal.log.scan", "from ..state import rows", id="upwards-relative"),
        pytest.param("mmwal.log.scan", "from .. import state", id="upwards-relative-bare"),
        pytest.param("mmwal.log.scan", "def f():\n    from mmwal import store", id="inside-a-function"),
        pytest.param("mmwal.log.scan", "class C:\n  async def f(s):\n    import mmwal.cli", id="inside-a-method"),
        pytest.param("mmwal.log.scan", "if TYPE_CHECKING:\n    from mmwal.store import VectorStore", id="for-types"),
        pytest.param("mmwal.log.scan", "import_module('mmwal.store')", id="by-name"),
        pytest.param("mmwal.log.scan", "import mmwal", id="the-face"),
        pytest.param("mmwal.log.scan", "from mmwal import WalConfig", id="a-name-of-the-face"),
        pytest.param("mmwal.errors", "from mmwal.config import WalConfig", id="errors-import-nothing"),
        pytest.param("mmwal.store", "from mmwal.observe import metrics", id="store-below-observe"),
        pytest.param("mmwal.cli.demo", "from mmwal.testing import model", id="the-test-kit-from-cli"),
        pytest.param("mmwal", "from mmwal.testing import model", id="the-test-kit-from-the-face"),
        pytest.param("mmwal.testing.disk", "import mmwal.cli", id="cli-from-the-test-kit"),
        pytest.param("mmwal.log.scan", "import os", id="os-in-log"),
        pytest.param("mmwal.format.frame", "from os import path", id="from-os-in-format"),
        pytest.param("mmwal.kernel.reference", "import os.path as p", id="os-path-in-kernel"),
        pytest.param("mmwal.state.matrix", "import sys, mmap", id="mmap-in-state"),
        pytest.param("mmwal.checkpoint.image", "def f():\n    import time", id="time-in-checkpoint"),
        pytest.param("mmwal.log.log", "import fcntl", id="fcntl-in-log"),
        pytest.param("mmwal.log.log", "import ctypes.util", id="ctypes-in-log"),
        pytest.param("mmwal.log.log", "from socket import socket", id="socket-in-log"),
        pytest.param("mmwal.attic.log", "", id="a-room-without-a-place"),
    ],
)
def test_checker_finds_the_breach(module: str, source: str) -> None:
    assert len(breaches(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        pytest.param("mmwal.recovery.recover", "from mmwal.log import scan", id="downwards"),
        pytest.param("mmwal.log.scan", "from . import cursor\nfrom .segment import Segment", id="own-room"),
        pytest.param("mmwal.kernel.reference", "from mmwal.format import layout", id="own-tier"),
        pytest.param("mmwal.log.log", "import threading, struct\nfrom numpy import uint8", id="threads-and-libraries"),
        pytest.param("mmwal.disk.posix", "import os, mmap, fcntl, time, ctypes", id="the-system-from-disk"),
        pytest.param("mmwal.recovery.recover", "import time", id="time-above-checkpoint"),
        pytest.param("mmwal.testing.model", "from mmwal import store, log", id="the-test-kit"),
        pytest.param("mmwal.cli.demo", "import mmwal", id="the-face-from-cli"),
        pytest.param("mmwal.__main__", "from mmwal.cli import main", id="main-belongs-to-cli"),
        pytest.param("mmwal", "from mmwal.opening import open", id="the-face-imports-rooms"),
        pytest.param("mmwal.log.scan", "import mmwalking\nimport osmosis", id="names-that-only-begin-alike"),
    ],
)
def test_checker_accepts(module: str, source: str) -> None:
    assert breaches(source, module) == []


def test_checker_resolves_relative_imports_of_a_package() -> None:
    assert breaches("from .scan import scan", "mmwal.log", is_package=True) == []
    assert len(breaches("from ..store import VectorStore", "mmwal.log", is_package=True)) == 1


def test_checker_finds_a_cycle_of_rooms() -> None:
    cycle = room_cycle(
        {
            "mmwal.format.frame": "import mmwal.kernel",
            "mmwal.kernel": "from mmwal.disk import interface",
            "mmwal.disk.posix": "from mmwal.format import layout",
            "mmwal.log": "import mmwal.format",
        }
    )
    assert sorted(set(cycle)) == ["disk", "format", "kernel"]


def test_checker_permits_what_is_imported_later_or_for_types() -> None:
    late = "def past():\n    from mmwal import opening"
    for_types = "if TYPE_CHECKING:\n    from mmwal.opening import Opened"
    sources = {"mmwal.opening": "from mmwal.store import VectorStore"}
    assert room_cycle(sources | {"mmwal.store": late}) == []
    assert room_cycle(sources | {"mmwal.store": for_types}) == []
    assert room_cycle(sources | {"mmwal.store": "from mmwal import opening"}) != []
