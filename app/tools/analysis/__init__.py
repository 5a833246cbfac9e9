"""SQL over the files of one user, with DuckDB.

settings.py    bounds
duck.py        what happens in the worker thread: one connection in memory, for one call
workbench.py   from the user's rows to the thread and back; interrupted where it is cancelled
tools.py       the two tools of the analyst
"""
