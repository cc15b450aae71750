"""The command line of train.py, and what it tells its user."""
