"""Agents, the learner, the actors and the training loop. Start reading at `agents/loop.py`."""
