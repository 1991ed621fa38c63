"""Recovers a copy of a store and compares it, from a checkout; the same as ``mmwal drill``.

    tools/drill.py data
    tools/drill.py --wal-dir fast/wal --data-dir large/data --work /mnt/spare --json

Exit codes: 0 all came back, 1 it could not be tried, 2 the command line is wrong, 3 something is damaged or differs.
``--help`` lists the options.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmwal.cli import main

if __name__ == "__main__":  # the workers of a pool import this file
    sys.argv.insert(1, "drill")
    main()
