"""Scaling policies that are not ours: each runs in a process of its own, so that its mistakes end there.

`loading.py` from a name to a function (the simulator's way too), `child.py` the program that runs it, `process.py` the
operator's side of that. `plan/scaling/own.py` judges the answers, `policies.py` puts it together.

It is a fence against mistakes, not against malice: the process has the operator's user, file system and network.
"""
