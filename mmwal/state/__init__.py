"""The state room: what is alive, in which row of the matrix, and who may still look at what was.

    matrix.py      the vectors: one mapped file that grows, or memory for a store without a log
    rows.py        what is known of each row: since when, until when, its checksum
    pins.py        the LSNs at which somebody looks at the state: readers, checkpoints, exported views
    limbo.py       rows that died and that somebody may still see
    state.py       the spine: take a row, put, remove, read, capture
    replay.py      the log applied to a state that nobody else has yet

Which id stands in which row, and what each row's id and metadata are, is kept by the kernel room's directory.

One rule carries the room: a row that was born at LSN b and died at LSN d belongs to every LSN s with b <= s < d.
It is written again only when no pin lies in that interval.
"""
