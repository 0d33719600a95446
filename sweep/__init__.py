"""The crash-point sweep: `python -m sweep`. The operator against a real API server, through a proxy that cuts it off
at every single write there is; afterwards all must be as if nothing had happened.

| file | what it is for |
|---|---|
| `scenarios.py` | what a user does: the edits, and how many ready engines there must be at any moment |
| `proxy.py` | stands between operator and API server: counts writes, cuts, replays old lists |
| `stage.py` | one namespace, and all in it but the operator: the user, simulated kubelets, controllers, agents |
| `life.py` | one life of the operator, which ends with all it remembers |
| `point.py` | one scenario played to its end, with one cut or none |
| `watched.py` | the whole operator, kopf included, behind watches that are late or leave events out |
| `oracle.py` | pure judgements: what is left out of a comparison, and what differs from the clean run |
| `planted.py` | operators with a bug planted in them, each of which the sweep must notice |
| `suite.py` | the clean runs, then all points, several at a time |
| `fuzz/` | the transition fuzz, upon the same stage: every field changed and changed back |
"""
