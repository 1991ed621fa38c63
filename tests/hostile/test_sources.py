"""No module of the package can run what a file says: no unpickling, no evaluation, no objects in arrays."""

import ast
import re
from pathlib import Path

import pytest

import mmwal

PACKAGE = Path(mmwal.__file__).parent
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
ARRAY_READERS = {"load", "fromfile", "memmap", "open_memmap", "genfromtxt"}


def problems(source: str) -> list[str]:
    """Returns what a module must not do, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        found += [f"{line}: imports {name}" for name in names if name in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            found += [f"{line}: {problem}" for problem in _of_call(node)]
    return found


def _of_call(call: ast.Call) -> list[str]:
    function = call.func
    if isinstance(function, ast.Name) and function.id in FORBIDDEN_CALLS:
        return [f"calls {function.id}"]
    allowed = any(word.arg == "allow_pickle" and not _is_false(word.value) for word in call.keywords)
    if allowed:
        return ["allows pickles"]
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "np":
        explicit = any(word.arg == "allow_pickle" and _is_false(word.value) for word in call.keywords)
        if function.attr in ARRAY_READERS and not explicit:
            return [f"reads an array by np.{function.attr} without allow_pickle=False"]
        given = [*call.args, *(word.value for word in call.keywords)]
        if any(_is_object(value) for value in given):
            return ["makes an array of objects"]
    return []


def _is_object(value: ast.expr) -> bool:
    if isinstance(value, ast.Constant):
        return value.value in ("O", "|O", "object")
    return isinstance(value, ast.Name) and value.id == "object"


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


SUSPICIOUS = re.compile(
    r"pickle|marshal|shelve|dill|joblib|yaml|__import__|\b(eval|exec|compile) *\("
    r"|\bnp\.(load|fromfile|memmap|genfromtxt)|open_memmap|\bobject\)|=object\b|[\"']\|?O[\"']|[\"']object[\"']"
)
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_no_module_runs_what_a_file_says() -> None:
    assert len(MODULES) > 40
    sources = {name: (PACKAGE / name).read_text("utf-8") for name in MODULES}
    found = {name: problems(source) for name, source in sources.items() if SUSPICIOUS.search(source)}  # parsing is slow
    assert {name: bad for name, bad in found.items() if bad} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "eval('1')",
        "exec(code)",
        "import numpy as np\nnp.frombuffer(b, 'O')",
        "import numpy as np\nnp.dtype(object)",
        "import numpy as np\nnp.empty(3, dtype=object)",
    ],
)
def test_gate_sees_each_of_them(source: str) -> None:
    assert SUSPICIOUS.search(source)
    assert problems(source)


def test_arrays_from_files_are_read_with_pickles_refused() -> None:
    assert problems("import numpy as np\nnp.load('x', allow_pickle=False)") == []
