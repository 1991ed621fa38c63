"""The search room: which vectors are nearest.

    exact.py     exact top-k on the mapped matrix
    norms.py     the length of each row, remembered between searches
    top.py       the best k of a stream of chunks, with room for rounding

Scores and ties are defined in `exact.py`.
"""
