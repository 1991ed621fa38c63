"""The recovery benchmark runs, small, in processes of its own: every row that was synced before the kill comes back."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "recover.py"


def test_killed_store_is_recovered_and_timed(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARK),
            "--mib=8",
            "--dimension=128",
            "--repetitions=2",
            f"--dir={tmp_path}",
            "--json",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["rows"] == 16_000
    assert report["payload_bytes"] == 16_000 * 512
    assert len(report["repetitions"]) == 2
    assert all(0 < each["recovery_s"] <= each["open_s"] and each["limit_s"] > 0 for each in report["repetitions"])
    assert not list(tmp_path.iterdir())
