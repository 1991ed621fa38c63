"""Bytes to values and back: what stands on disk, and nothing else.

Pure: no I/O, no clock, no threads. Every layout is data (`layout.py`); `docs/format.md` is rendered from it.

    layout.py     how a layout is declared, packed, checked and rendered
    frame.py      the 64-byte frame header, the commit word, the blocks of ids and metadata
    segment.py    segment header, link and footer
    control.py    the two-slot control files of the log and of the data
    image.py      the columnar image of the directory
"""
