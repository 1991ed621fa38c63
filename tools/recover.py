"""Recovers a store in parallel, from a checkout; the same as ``mmwal recover``.

    tools/recover.py --wal-dir data/wal --data-dir data/data --workers 2
    tools/recover.py data --dry-run --json

Exit codes: 0 recovered, 1 it failed, 2 the command line is wrong, 3 durable data is damaged (nothing was changed).
``--help`` lists the options.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmwal.cli import main

if __name__ == "__main__":  # the workers of a pool import this file
    sys.argv.insert(1, "recover")
    main()
