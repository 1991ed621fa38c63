"""The examples in docstrings run, each module's in an empty directory."""

import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import mmwal

BUILT = {"mmwal.kernel._kernel", "mmwal.disk._sync"}  # extensions: they may be absent, and have no examples
MODULES = sorted(
    {"mmwal", *(module.name for module in pkgutil.walk_packages(mmwal.__path__, "mmwal."))} - BUILT - {"mmwal.__main__"}
)
PUBLIC_WITH_EXAMPLES = {"mmwal.config", "mmwal.entry", "mmwal.manager", "mmwal.opening", "mmwal.store"}


def examples(module: str) -> list[doctest.DocTest]:
    """Lists a module's examples; they may use the public names without importing them."""
    loaded = importlib.import_module(module)
    names = {name: getattr(mmwal, name) for name in mmwal.__all__ if name != "open" and name not in vars(loaded)}
    found = doctest.DocTestFinder(exclude_empty=True).find(loaded, extraglobs=names)
    return [test for test in found if test.examples]


@pytest.mark.filterwarnings("ignore::mmwal.DurabilityWarning")
@pytest.mark.parametrize("module", MODULES)
def test_examples_of_the_module_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=options)
    for test in examples(module):
        assert runner.run(test, out=sys.stdout.write).failed == 0, test.name


def test_public_modules_have_examples() -> None:
    assert [module for module in sorted(PUBLIC_WITH_EXAMPLES) if not examples(module)] == []
