"""Strictness for all tests: silent broadcasting between ranks is an error; so are warnings (pyproject.toml)."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
