"""The error that a user can mend, and what its message is made of."""

from __future__ import annotations

import difflib


class ConfigError(ValueError):
    """A mistake in a gin file, a flag or other input; the message says where, and what is allowed."""


def plain(error: Exception) -> str:
    """The message of an error, or its type, without what gin adds to it."""
    message = str(error)
    for addition in ("\n  In call to configurable", "\n  No values supplied"):
        message = message.partition(addition)[0]
    return message or type(error).__name__


def did_you_mean(name: str, allowed) -> str:
    """A hint at the allowed names that are near, '' if none is."""
    near = difflib.get_close_matches(name, list(allowed), n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""
