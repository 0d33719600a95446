"""Commands for people, one module each; `__main__.py` hangs them up.

`explain.py` says why a deployment has its sizes. They act with the rights of whoever calls them (`caller.py`) and
change nothing in the cluster.
"""
