"""Commands for people, one module each; `__main__.py` hangs them up.

`explain.py` says why a deployment has its sizes; `record.py` writes what they are decided from into a file
(`recording.py`), and `replay.py` decides once more on such a file (`replaying.py`, `plot.py`); `simulate.py` opens the
simulator. They act with the rights of whoever calls them (`caller.py`) and change nothing in the cluster.
"""
