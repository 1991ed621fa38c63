"""The checkpoint room: from what is alive in memory to a redo point on disk, and back.

    checkpoint.py   the spine: capture, sync, write the image, publish, clean up
    changes.py      what changed since the checkpoint before, as columns
    image.py        the image files: append a section, begin a new file, remove those that no slot names
    control.py      the two slots of the data's control file
    load.py         the newest checkpoint that is whole, as a state
    verify.py       a data directory against its checksums: slots, sections, rows

A checkpoint is one image (prefix of a file), the rows of the matrix that it names, and the slot that names it.
"""
