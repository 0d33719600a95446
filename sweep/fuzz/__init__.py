"""The transition fuzz: `python -m sweep fuzz`. Every leaf of the CRD's schema is changed on a settled deployment and
changed back, to valid values, to boundary values and to bad ones; after every step the invariants must hold.

| file | what it is for |
|---|---|
| `leaves.py` | the leaves of the schema, and how a value is put at one |
| `values.py` | valid, boundary and bad values of a leaf, from its schema alone |
| `hints.py` | one table: what the schema cannot know |
| `cases.py` | one edit of one leaf: from which spec, to which, and what must come of it |
| `lane.py` | one namespace in which edits are played one after the other, and what was seen of each |
| `invariants.py` | pure judgements over what was seen |
| `mutants.py` | operators with a bug planted in them, each of which must be noticed |
| `campaign.py` | all cases and all mutants upon one API server |
| `command.py` | the command, and what it prints |

Stage, client and comparison are those of the crash-point sweep. What is cut off there is left alone here, and what a
user may write is a handful there and everything here.
"""
