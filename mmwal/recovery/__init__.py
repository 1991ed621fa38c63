"""The recovery room: from what a crash left to a state that serves.

tail.py       where the log ends: survey (reads only), then repair (makes it durable)
log_opening.py    a log alone: lock, identity, survey, repair, append
recover.py    the spine: checkpoint, index, decide, copy
read_only.py  the same into memory, changing no byte, beside a writer too
follow.py     a log that grows, entry by entry, across its writers
"""
