"""What `tools/fuzz.py` is made of: hostile bytes with valid checksums, what reads them, and what may come of it.

values.py      numbers and bytes that break careless readers
disk.py        a disk whose files are given and never change
seeds.py       honest stores, small, written by mmwal itself
segments.py    a segment as a list of frames that can be changed and put together again
images.py      control slots and directory images, the same way
msgpack.py     hostile metadata
stores.py      a whole store with some of that in it
structures.py  the table of what is fuzzed: how an input is made, who reads it, what may come of it
judge.py       one input under limits of time and memory; the counts
building.py    a copy of the package with another kernel: sanitized, or with a bug
"""
