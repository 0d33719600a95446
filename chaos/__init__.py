"""The chaos suite: `python -m chaos`. Breaks a running deployment on purpose under load, and judges what clients saw.

| file | what it is for |
|---|---|
| `scenarios/*.yaml`, `scenario.py` | what breaks, when, and what is expected then |
| `questions.py`, `load.py`, `client.py` | what is asked; the open-loop load, a process of its own; its other end |
| `journal.py`, `oracle.py` | what each request met; pure judgements of it |
| `doctor.py` | journals spoiled on purpose, which the oracles must find |
| `world.py`, `processes.py`, `cluster.py` | where it runs: processes of this machine, or the local cluster |
| `run.py`, `results.py`, `table.py` | one scenario from load to verdict; results as JSON; docs/recovery.md from them |
"""
