"""``mmwal demo``: real embeddings go in, the process is killed in the middle, what was promised comes back.

command.py      the command line: options, exit code
story.py        the spine: load, kill, recover, check, finish, search, close, reopen
child.py        the process that writes and is killed
plan.py         which operations, in which order, from a seed
model.py        what a store must hold, as a plain dict; the comparison
embeddings.py   the package's own copy of real embeddings
screen.py       the story as a person reads it
report.py       the story as a machine reads it
"""
