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
            "--repetitions=1",
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
    (case,) = report["cases"]
    assert 8 << 20 <= case["log_bytes"] < 16 << 20
    assert case["rows"] * 10 == case["entries"] * 3  # of five inserted, two are deleted
    assert 0 <= case["memory_bytes_per_entry"] < 1 << 20
    assert [(way["way"], way["cache"]) for way in case["ways"]] == [
        (way, cache) for way in ("1 worker", "as chosen", "2 threads", "2 processes") for cache in ("warm", "cold")
    ]
    for way in case["ways"]:
        for read_s, recovery_s, open_s, limit_read_s, limit_s in zip(
            *(way[name] for name in ("read_s", "recovery_s", "open_s", "limit_read_s", "limit_s")), strict=True
        ):
            assert 0 < read_s < recovery_s < open_s
            assert 0 < limit_read_s < limit_s
    assert not list(tmp_path.iterdir())
