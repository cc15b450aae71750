"""What a run goes on from: its directory, and the checkpoints in it."""
