"""One run, wherever it was read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from agents import launch

METRICS = {"train": "training episodes", "eval": "evaluations"}
LONGEST, LARGEST = 200, 1e12  # names; returns
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, EOFError)


class Run(NamedTuple):
    """One seed on one game."""

    source: str  # where it was read
    name: str  # of its settings, for people
    game: str
    seed: int
    settings: dict[str, str]  # that tell it from runs of other groups; none for published runs
    facts: dict[str, str]  # that do not, but are worth a note: commit, device
    planned_frames: int
    reached_frames: int
    frames: np.ndarray  # [K], of each return; of offline runs updates, as everywhere else
    returns: np.ndarray  # [K]
    unit: str = "frames"  # or updates
    behaviour_return: float | None = None  # of an offline run's data set
    data: tuple[str, str] | None = None  # paths of an offline run's data set, for people, and its digest
    table: str = ""  # of an earlier comparison, that it was read from
    metric: str = "train"  # what the returns are of, one of METRICS
    weights: np.ndarray | None = None  # of how many each is the mean [K]; None: of one

    def windows(self, width: int, number: int) -> np.ndarray:
        """Means of the returns in (k width, (k + 1) width] for k < number; NaN where there is none."""
        counts = self.counts(width, number)
        sums = self._sums(self.returns * (1 if self.weights is None else self.weights), width, number)
        return np.divide(sums, counts, out=np.full(number, np.nan), where=counts > 0)

    def counts(self, width: int, number: int) -> np.ndarray:
        """How many returns there are in the same windows."""
        return self._sums(np.ones(len(self.frames)) if self.weights is None else self.weights, width, number)

    def _sums(self, values: np.ndarray, width: int, number: int) -> np.ndarray:
        window = np.ceil(self.frames / width).astype(int) - 1
        inside = (window >= 0) & (window < number)
        return np.bincount(window[inside], weights=values[inside], minlength=number)


def count(number: int, what: str) -> str:
    """1 game, 2 games."""
    return f"{number} {what}{'s' * (number != 1)}"


def text_of(value) -> str:
    """Anything as one line of printable text."""
    return launch.printable(str(value))


def name_of(value) -> str:
    """A short name, which no spreadsheet takes for a formula."""
    return text_of(value)[:LONGEST].lstrip("=+-@") or "-"
