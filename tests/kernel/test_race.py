"""The race test of the compiled core, without a sanitizer; tools/sanitize.sh runs it under the thread sanitizer."""

import subprocess
from typing import Any


def test_many_threads_with_paused_appenders_leave_a_whole_log(c_test: Any) -> None:
    done = subprocess.run([c_test("race_test")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole" in done.stdout
