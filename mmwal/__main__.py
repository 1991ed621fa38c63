"""``python -m mmwal``: the `mmwal` command where its script is not on the path."""

from mmwal.cli import main

if __name__ == "__main__":
    main()
