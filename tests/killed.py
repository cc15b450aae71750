"""Runs `scripts/train.py` and dies as by `kill -9`, before or after the n-th call of a function.

python tests/killed.py agents.reporting.logger:Logger.write 40 --game Pong ...
"""

import importlib
import os
import signal
import sys


def find(target: str) -> tuple:
    """The owner and the name of `module:name`, where the name is that of a function or of a method."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    return owner, name


def arm(target: str, count: int) -> None:
    """Replaces `module:name`: half of the calls die before it does its work, half after."""
    owner, name = find(target)
    function, calls = getattr(owner, name), 0

    def dying(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count and count % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


if __name__ == "__main__":
    target, count, *flags = sys.argv[1:]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:0] = [root, os.path.join(root, "scripts")]
    import train

    if target != "-":
        arm(target, int(count))
    sys.exit(train.main(flags))
