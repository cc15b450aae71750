"""Gin files and bindings, strictly: what they say takes effect, or is an error before anything runs."""
