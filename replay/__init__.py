"""Replay buffers as pure functions over arrays. Imports nothing else of the project."""
