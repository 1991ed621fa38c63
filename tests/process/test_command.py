"""The command line: exit codes, messages instead of tracebacks, and what it needs to exist."""

import json

import pytest

import mmwal
from mmwal.cli import app
from mmwal.errors import HeaderCorruptionError, WalConfigError, WalFullError, WalLockedError
from tests.process.conftest import Run

OPTIONAL = ("click", "rich", "lz4", "psutil", "matplotlib")


def test_version_says_what_is_installed(run: Run) -> None:
    done = run("-m", "mmwal", "version")
    assert done.returncode == 0
    assert mmwal.__version__ in done.stdout
    assert {"c": "compiled", "py": "pure Python"}[mmwal.kernel_in_use()] in done.stdout


def test_version_as_json_is_one_object(run: Run) -> None:
    done = run("-m", "mmwal", "version", "--json")
    found = json.loads(done.stdout)
    assert (found["mmwal"], found["kernel"]) == (mmwal.__version__, mmwal.kernel_in_use())
    assert {"python", "platform", "numpy"} <= set(found)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], id="no-command"),
        pytest.param(["no-such-command"], id="unknown-command"),
        pytest.param(["demo", "--kill-at", "2"], id="fraction-out-of-range"),
        pytest.param(["demo", "--sync-interval-ms", "-1"], id="negative-interval"),
        pytest.param(["demo", "--kernel", "rust"], id="unknown-kernel"),
        pytest.param(["version", "--loud"], id="unknown-option"),
    ],
)
def test_mistakes_on_the_command_line_exit_2_without_a_traceback(run: Run, arguments: list[str]) -> None:
    done = run("-m", "mmwal", *arguments)
    assert done.returncode == 2
    assert "Usage: mmwal" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_demo_refuses_a_directory_that_is_not_empty(run: Run, tmp_path: object) -> None:
    assert run("-c", "import os; os.mkdir('full'); open('full/file', 'w').close()").returncode == 0
    done = run("-m", "mmwal", "demo", "--dir", "full")
    assert done.returncode == 2
    assert "is not empty" in done.stderr


def test_demo_reports_a_directory_that_cannot_be_made(run: Run) -> None:
    done = run("-m", "mmwal", "demo", "--dir", "/proc/nowhere")
    assert done.returncode == 1
    assert "/proc/nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WalFullError("full"), 1),
        (WalLockedError("somewhere", 1), 1),
        (OSError(5, "input/output error"), 1),
        (WalConfigError("kernel", "rust", "is not known"), 2),
        (HeaderCorruptionError("control", "is damaged"), 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_of_error_has_its_exit_code(error: Exception, code: int) -> None:
    assert app.exit_code(error) == code


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_the_script_says_what_to_install(run: Run, missing: str) -> None:
    done = run("-c", f"import sys; sys.modules[{missing!r}] = None; from mmwal.cli import main; main()")
    assert done.returncode == 2
    assert 'pip install "mmwal[cli]"' in done.stderr
    assert missing in done.stderr
    assert "Traceback" not in done.stderr


def test_import_mmwal_brings_in_nothing_optional(run: Run) -> None:
    done = run("-c", f"import sys, mmwal; print([name for name in {OPTIONAL!r} if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_script_itself_needs_no_extra(run: Run) -> None:
    done = run("-c", "import sys, mmwal.cli; print([name for name in ('click', 'rich') if name in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
