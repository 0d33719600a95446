"""Benchmarks: each runs its baseline beside ours in one run and prints ratios. `python -m bench` lists them."""
