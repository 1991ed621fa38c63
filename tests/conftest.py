"""What the tests of several rooms share: the two kernels under one suite. The rest is in each room's own."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# So that tests may import tests.<room>.<module>, tools and benchmarks. Last, because the mmwal under test is
# the installed one: with an editable installation that is this checkout, with a plain one it must not be.
sys.path.append(str(Path(__file__).resolve().parent.parent))


def _require_compiled_kernel() -> None:
    """Skip the test without the extension; fail it where the extension has been promised."""
    if importlib.util.find_spec("mmwal.kernel._kernel") is not None:
        return
    if os.environ.get("MMWAL_REQUIRE_EXTENSION", "") not in ("", "0"):
        pytest.fail("MMWAL_REQUIRE_EXTENSION is set and mmwal.kernel._kernel is not built", pytrace=False)
    pytest.skip("mmwal.kernel._kernel is not built")


@pytest.fixture(params=["c", "py"])
def kernel(request: pytest.FixtureRequest) -> Any:
    """Each kernel in turn: the compiled one (`c`) and its pure-Python twin (`py`)."""
    if request.param == "c":
        _require_compiled_kernel()
    import mmwal.kernel

    return mmwal.kernel.load(request.param)
