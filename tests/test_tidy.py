"""House rules a machine can keep: nothing executes what it reads, no machine's paths, no overlong file."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmwal"

LINES_MAX = 1200
NAMES_THAT_SAY_NOTHING = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
EXECUTING_MODULES = frozenset({"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"})
EXECUTING_CALLS = frozenset({"eval", "exec"})
# In pieces, because this file is searched as well.
MACHINE_PATHS = tuple(b"/" + folder + b"/" for folder in (b"work", b"root"))


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def tracked_files() -> list[Path]:
    """List what is or would be tracked by git; outside a git checkout, what is not hidden or built."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        built = {"build", "dist", "__pycache__"}
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(part in built or part.startswith(".") for part in path.relative_to(ROOT).parts)
            and path.suffix not in (".so", ".pyc")
        ]
    return sorted(path for path in paths if path.is_file())


def executing_code(source: str) -> list[str]:
    """List the constructs in `source` that would run code out of the data they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in EXECUTING_MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in EXECUTING_MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in EXECUTING_CALLS:
                found.append(name)
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    found.append("allow_pickle")
    return found


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_package_never_executes_what_it_reads() -> None:
    found = {where(path): executing_code(path.read_text("utf-8")) for path in modules()}
    assert {path: constructs for path, constructs in found.items() if constructs} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, pickle as p",
        "from pickle import loads",
        "def f():\n    import marshal",
        "eval('1')",
        "exec(code)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_checker_finds_code_execution(source: str) -> None:
    assert len(executing_code(source)) == 1


@pytest.mark.parametrize("source", ["np.load(path)", "np.load(path, allow_pickle=False)", "model.eval()", "import ast"])
def test_checker_accepts_plain_reading(source: str) -> None:
    assert executing_code(source) == []


def test_no_tracked_file_names_a_path_of_a_machine() -> None:
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    found = [
        f"{where(path)}: {prefix.decode()}" for path in files for prefix in MACHINE_PATHS if prefix in path.read_bytes()
    ]
    assert found == []


def test_no_file_of_the_package_is_too_long_to_read() -> None:
    sources = [path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".pyi", ".c", ".h")]
    lengths = {where(path): len(path.read_text("utf-8").splitlines()) for path in sources}
    assert {path: length for path, length in lengths.items() if length > LINES_MAX} == {}


def test_module_names_say_what_is_inside() -> None:
    named = [path for path in PACKAGE.rglob("*") if path.is_dir() or path.suffix in (".py", ".c", ".h")]
    assert [where(path) for path in named if path.stem.strip("_") in NAMES_THAT_SAY_NOTHING] == []


def test_every_module_begins_with_its_docstring() -> None:
    assert modules()
    trees = {where(path): ast.parse(path.read_text("utf-8")) for path in modules()}
    assert [path for path, tree in trees.items() if not ast.get_docstring(tree)] == []


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__.py is silently left out of the wheel."""
    folders = {path.parent for path in modules()}
    assert [where(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
