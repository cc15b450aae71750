"""What the environment must hold before Python and JAX start: a script without it starts itself again.

On a CPU an update allocates the same large arrays again and again, and XLA's newer convolutions are slower than the
older ones; the README says what each setting gains. Variables that are already set are left alone.
"""

import argparse
import contextlib
import errno
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import NoReturn

from agents.errors import ConfigError

GIB = 2**30
SETTINGS = {
    # glibc: allocate in huge pages, and keep what was freed instead of giving it back after each update.
    "GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={GIB}:"
    f"glibc.malloc.trim_threshold={4 * GIB}:glibc.malloc.top_pad={GIB // 4}",
}
# XLA aborts at flags that it does not know, so this one is set for the versions that it was tried with only.
if (0, 10) <= tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 12):
    # Matrix products and sums by YNNPACK as by default, but convolutions by Eigen.
    ynn = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    SETTINGS["XLA_FLAGS"] = f"--xla_cpu_experimental_ynn_fusion_type={ynn}"
# For --deterministic: kernels that add up in a fixed order, chosen without a race between them. That needs autotuning,
# since without it convolutions are cuDNN's first ones, which are not among these.
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
PREPARED = "STOP_REGRESSING_PREPARED"  # set in the process that was started again, so that it happens once


def prepare() -> None:
    """Starts this process again with `SETTINGS`, unless they are there; call it before JAX is imported."""
    missing = {name: value for name, value in SETTINGS.items() if name not in os.environ}
    if "--deterministic" in sys.argv:
        flags = os.environ.get("XLA_FLAGS", SETTINGS.get("XLA_FLAGS", ""))
        missing["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()
    possible = sys.platform == "linux" and sys.executable and "jax" not in sys.modules and PREPARED not in os.environ
    if missing and possible:
        os.execve(sys.executable, sys.orig_argv, os.environ | missing | {PREPARED: "1"})


class Unread:
    """A stream to print to that goes quiet once its reader is gone: a closed terminal or pipe ends no run.

    Args:
      stream: standard output or standard error.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or does nothing."""
        with self._unread():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is left, or lets it be."""
        with self._unread():
            self._stream.flush()

    @contextlib.contextmanager
    def _unread(self):
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # of a pipe, of a terminal; a disk may be full
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)  # where this and all that follows goes
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def outlasting_readers():
    """Lets nothing that is printed meanwhile fail, whoever has stopped reading: for what must go on, and save."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Unread, before)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before


def cores() -> int:
    """How many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(main) -> NoReturn:
    """Runs a script's `main` and exits with its code, or with 2 after one line on what went wrong.

    A traceback means a mistake in this project, or in the environment of a `GameError`.
    """
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (ConfigError, OSError, MemoryError, FloatingPointError) as error:
        print(f"error: {printable(str(error)) or 'out of memory'}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # JAX's: what an update holds in between was not counted at the start
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = "Pass a smaller --replay_capacity, or choose a smaller network or batch."
        print(f"error: the device's memory is full. {advice} ({printable(str(error))[:200]})", file=sys.stderr)
        sys.exit(2)


def path(text: str) -> Path:
    """A path of the command line; an empty one, which would be the working directory, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return Path(text)


def refuse_empty(parser, args) -> None:
    """Ends with an error if an argument is an empty string, which would else count as not given."""
    for name, value in vars(args).items():
        if value == "" or (isinstance(value, list) and "" in value):
            parser.error(f"--{name} is empty")


def listed(text: str) -> list[str]:
    """The parts of a list with commas, e.g. 'Pong, Breakout'."""
    return [part.strip() for part in text.split(",") if part.strip()]


def printable(text: str) -> str:
    """Text as one line, without what would steer a terminal."""
    line = " ".join(filter(None, (part.strip() for part in text.splitlines())))
    return "".join(letter if letter.isprintable() else "?" for letter in line)
