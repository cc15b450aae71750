"""What `scripts/benchmark.py` measures: compiled updates, the replay, the actors, and whole training processes."""
