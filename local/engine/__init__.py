"""The engine on CPU, and models small enough to test with. `python -m local.engine --help`."""
