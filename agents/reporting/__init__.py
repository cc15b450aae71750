"""What a run tells: metrics, messages, a line of progress."""
