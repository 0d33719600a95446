"""A real Kubernetes of several nodes on one machine. `python -m local --help`."""
