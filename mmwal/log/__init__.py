"""The log room: one endless log in preallocated segments.

    log.py        the spine: append, sync, wait, release, close
    segment.py    what is done to one segment file: prepare, link, seal, inspect
    keeper.py     the background acts: runway ahead, sealing behind, retirement
    control.py    the log's own control file; control_file.py: what it shares with the data's
    scan.py       frames of a segment as arrays
    reader.py     entries of a range of the log, in order
    batch.py      rows to frames, beyond the one kernel call of the hot path
    unlogged.py   what stands in for the log of a store in memory
    read_only.py  what stands in for the log of a store opened for reading
    gate.py       the sync role in Python (the compiled one belongs to the disk room)

Frames go in at the front (`log.py`), are made durable (`gate.py`), and are let go of at the back (`keeper.py`).
"""
