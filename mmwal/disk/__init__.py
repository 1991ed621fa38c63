"""The disk room: the only one that calls the operating system.

`interface.py` says what the rest of the package may ask for, `posix.py` does it. `_sync.c` is the compiled sync gate,
and what else would have to win the GIL back many times.
"""
