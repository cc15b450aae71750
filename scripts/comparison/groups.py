"""Sorts runs into groups, and brings the groups to the same games and frames."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np

from comparison.runs import Run

WINDOW_FRAMES, TABLE_WINDOWS = 1_000_000, 5


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in game and seed only.

    Attributes:
      name: for people, unlike that of any other group.
      settings: what tells it from other groups.
      runs: sorted by game and seed.
      scores: raw returns of each run [R, T], in the windows of the comparison.
    """

    name: str
    settings: dict[str, str]
    runs: list[Run]
    scores: np.ndarray

    @property
    def games(self) -> np.ndarray:
        """The game of each run [R]."""
        return np.array([run.game for run in self.runs])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Groups on the same games and frames.

    Attributes:
      groups: by name.
      games: those that all groups have.
      frames: end of each window [T].
      window: width of the windows in frames.
      notes: what a reader should know: what was merged, cut, left out or is missing.
    """

    groups: list[Group]
    games: list[str]
    frames: np.ndarray
    window: int
    notes: list[str]


def differing(runs: list[Run]) -> list[str]:
    """Settings that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def select(keys: list[str], wanted: list[str] | None, notes: list[str]) -> list[str]:
    """The settings to group by: all that differ, or those that the user wants, by full name or its last part.

    Raises:
      ValueError: if a wanted one is not among those that differ.
    """
    if wanted is None:
        return keys
    chosen = []
    for name in wanted:
        found = [key for key in keys if key == name or key.rpartition(".")[2] == name]
        if not found:
            raise ValueError(
                f"--group_by: {name!r} does not differ between these runs; what does: {keys or 'nothing'}."
            )
        chosen += found
    if merged := [key for key in keys if key not in chosen]:
        notes.append(f"Merged runs that differ in {', '.join(merged)}.")
    return chosen


def make_groups(runs: list[Run], wanted: list[str] | None, notes: list[str]) -> dict[str, list[Run]]:
    """Sorts runs into groups by their settings; returns name -> runs."""
    keys = select(differing(runs), wanted, notes)
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(key) for key in keys), []).append(run)
    plain = {values: " or ".join(sorted({run.name for run in members})) for values, members in groups.items()}
    named = {}
    for values, members in groups.items():
        alike = [other for other in groups if plain[other] == plain[values]]
        told = [i for i in range(len(keys)) if len({other[i] for other in alike}) > 1]
        more = [f"{keys[i].rpartition('.')[2]}={values[i]}" for i in told]
        named[" ".join([plain[values], *more])] = _without_twins(members, notes)
    return named


def _without_twins(runs: list[Run], notes: list[str]) -> list[Run]:
    """Sorted by game and seed; of two with the same the one that got further."""
    kept: dict[tuple, Run] = {}
    for run in runs:
        twin = kept.get((run.game, run.seed))
        if twin is None or twin.reached_frames < run.reached_frames:
            kept[run.game, run.seed] = run
        if twin is not None:
            notes.append(f"{twin.source} and {run.source} are of the same group, game and seed; the longer one counts.")
    return [kept[key] for key in sorted(kept)]


def common_frames(runs: list[Run], asked: int | None, notes: list[str]) -> int:
    """Up to which frames is compared: as far as all finished runs go, all runs if none is finished, or as asked."""
    if asked:
        return asked
    started = [run for run in runs if len(run.frames)]
    finished = [run for run in started if run.reached_frames >= run.planned_frames * 0.98]
    if finished:
        return min(run.planned_frames for run in finished)
    shortest = min(started, key=lambda run: run.reached_frames)
    notes.append(f"No run is finished: compared as far as {shortest.source} goes.")
    return shortest.reached_frames


def nice_window(frames: int) -> int:
    """A million frames, or of shorter runs a round number that makes about 20 windows."""
    if frames >= TABLE_WINDOWS * WINDOW_FRAMES:
        return WINDOW_FRAMES
    rough = max(frames / 20, 1)
    unit = 10 ** int(np.floor(np.log10(rough)))
    return int(max(unit * step for step in (1, 2, 5) if unit * step <= rough))


def compare(
    runs: list[Run],
    group_by: list[str] | None = None,
    containing: list[str] | None = None,
    window: int | None = None,
    frames: int | None = None,
    said: Callable[[str], None] = lambda note: None,
) -> Comparison:
    """Brings runs to the same games and frames.

    Args:
      runs: all runs.
      group_by: settings that make groups; None takes all that differ.
      containing: only groups whose name contains one of these.
      window: width of the windows over which returns are averaged, in frames; None chooses.
      frames: compare up to here; None chooses. Runs that have not got so far are left out.
      said: called with each note.

    Raises:
      ValueError: if nothing can be compared.
    """
    notes: list[str] = []
    if not any(len(run.frames) for run in runs):
        raise ValueError("There is no run with a return yet.")
    groups = make_groups(runs, group_by, notes)
    if containing:
        chosen = {name: members for name, members in groups.items() if any(text in name for text in containing)}
        if not chosen:
            raise ValueError(f"--groups: no name contains {' or '.join(containing)}. There are: {', '.join(groups)}.")
        groups, runs = chosen, [run for members in chosen.values() for run in members]
    frames = common_frames(runs, frames, notes)
    window = window or nice_window(frames)
    published = [run for run in runs if "published as" in run.settings]
    if published and window % WINDOW_FRAMES:
        raise ValueError(f"Published runs have one return per {WINDOW_FRAMES:,} frames; --window must be a multiple.")
    number = int(frames // window)
    if number < 1:
        raise ValueError(f"The runs compared have {frames:,} frames, less than a window of {window:,}. Lower --window.")

    kept = {}
    for name, members in groups.items():
        # An episode that ends exactly at the last frame is rare: a run counts once its last window has begun.
        kept[name] = [run for run in members if run.reached_frames > (number - 1) * window]
        for run in members:
            if run not in kept[name]:
                notes.append(f"Left out, at {run.reached_frames:,} of {number * window:,} frames: {run.source}")
    for name in [name for name, members in kept.items() if not members]:
        notes.append(f"The group {name} has no run that reaches {number * window:,} frames.")
        del kept[name]
    if not kept:
        raise ValueError(f"No run reaches {number * window:,} frames. Lower --frames.")
    return _align(kept, window, number, notes, said)


def _align(groups: dict[str, list[Run]], window: int, number: int, notes, said) -> Comparison:
    """Cuts to the games of all groups, and to the windows in which every run has a return."""
    games = sorted(set.intersection(*({run.game for run in members} for members in groups.values())))
    if not games:
        raise ValueError(f"The groups have no game in common: {', '.join(groups)}.")
    for name, members in groups.items():
        if others := sorted({run.game for run in members} - set(games)):
            notes.append(f"Only some groups have these games, which are left out of {name}: {', '.join(others)}.")
    groups = {name: [run for run in members if run.game in games] for name, members in groups.items()}
    scores = {name: np.array([run.windows(window, number) for run in members]) for name, members in groups.items()}
    complete = np.all([~np.isnan(values).any(axis=0) for values in scores.values()], axis=0)
    if not complete.any():
        raise ValueError(f"No window of {window:,} frames has a return of every run. Pass a larger --window.")
    if not complete.all():
        _note_gaps(groups, scores, window, complete, notes)
    for name, members in groups.items():
        notes += _missing(name, members, games)
        seeds = Counter(run.game for run in members)
        if max(seeds.values()) == 1:
            notes.append(f"{name} has one seed per game: its intervals say nothing about seeds.")
        for fact in ("commit", "device"):
            if len(values := {run.facts[fact] for run in members if run.facts.get(fact)}) > 1:
                notes.append(f"The runs of {name} differ in {fact}: {', '.join(sorted(values))}.")
    varying = differing([run for members in groups.values() for run in members])
    made = [
        Group(name, {key: members[0].settings.get(key, "-") for key in varying}, members, scores[name][:, complete])
        for name, members in groups.items()
    ]
    if protocol := [key for key in varying if key.startswith("Atari.")]:
        notes.insert(0, f"The groups differ in the protocol of their games: {', '.join(protocol)}.")
    for note in notes:
        said(note)
    return Comparison(made, games, (np.flatnonzero(complete) + 1) * window, window, notes)


def _note_gaps(groups, scores, window, complete, notes) -> None:
    culprits = [
        run.source
        for name, members in groups.items()
        for run, values in zip(members, scores[name], strict=True)
        if np.isnan(values).any()
    ]
    notes.append(
        f"{np.sum(~complete)} of {len(complete)} windows of {window:,} frames are left out, as they lack a return in "
        f"{', '.join(culprits[:3])}{f' and {len(culprits) - 3} more' if len(culprits) > 3 else ''}."
    )


def _missing(name: str, members: list[Run], games: list[str]) -> list[str]:
    """Seeds that some games of a group have and others lack."""
    seeds = sorted({run.seed for run in members})
    have = {(run.game, run.seed) for run in members}
    lacking = {game: [seed for seed in seeds if (game, seed) not in have] for game in games}
    missing = [f"{game} (seed {', '.join(map(str, lack))})" for game, lack in lacking.items() if lack]
    return [f"{name} lacks {'; '.join(missing)}."] if missing else []
