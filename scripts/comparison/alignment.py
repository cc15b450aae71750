"""Brings groups of runs to the same games and frames."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from agents.errors import ConfigError
from comparison.groups import differing, make_groups
from comparison.run import Run, count

WINDOW_FRAMES, TABLE_WINDOWS = 1_000_000, 5


class NothingYet(ConfigError):
    """There is nothing to compare, but there may be once runs have gone on."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs whose scores are aggregated.

    Attributes:
      name: for people, unlike that of any other group.
      settings: what tells it from other groups; several values where groups were merged.
      runs: sorted by game.
      scores: raw returns of each run [R, T], in the windows of the comparison; NaN where no episode ended in one.
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
      groups: with one run on every game at least.
      games: those that all groups have.
      frames: end of each window [T].
      window: width of the windows in frames.
      unit: what is counted: frames, or, of offline runs, updates.
      metric: what the returns are of, 'train' or 'eval'.
      notes: what a reader should know: what was merged, cut, left out or is missing.
    """

    groups: list[Group]
    games: list[str]
    frames: np.ndarray
    window: int
    notes: list[str]
    unit: str = "frames"
    metric: str = "train"


def compare(
    runs: list[Run],
    group_by: list[str] | None = None,
    containing: list[str] | None = None,
    window: int | None = None,
    frames: int | None = None,
    updates: int | None = None,
) -> Comparison:
    """Brings runs to the same games and frames.

    Args:
      runs: all runs.
      group_by: settings that make groups; None takes all that differ.
      containing: only groups of one of these names or, where no group has it, whose name contains it.
      window: width of the windows over which returns are averaged, in frames; None chooses.
      frames: compare up to here; None chooses. Runs that have not got so far are left out.
      updates: the same, of offline runs.

    Raises:
      ConfigError: if nothing can be compared.
    """
    notes: list[str] = []
    if not any(len(run.frames) for run in runs):
        raise NothingYet("There is no run with a return yet.")
    groups = make_groups(runs, group_by, notes)
    if containing:
        groups = _chosen(groups, containing, notes)
    if len(units := {run.unit for members in groups.values() for run in members}) > 1:
        raise ConfigError("Offline runs count updates, and others frames: choose with --groups, e.g. --groups cql.")
    [unit] = units
    if len({run.metric for members in groups.values() for run in members}) > 1:
        raise ConfigError("Some have returns of training episodes, others of evaluations: choose with --metric.")
    if not any(len(run.frames) for members in groups.values() for run in members):
        raise NothingYet(f"No run of these groups has a return yet: {', '.join(groups)}.")
    if other := {"frames": updates, "updates": frames}[unit]:
        raise ConfigError(f"These runs count {unit}: pass --{unit} in place of the other's {other:,}.")
    if not (frames := frames or updates):
        _leave_out_begun(groups, notes)
    groups = _on_common_games(groups, notes)
    frames = frames or common_frames(groups, notes)
    window = _fitting_window(groups, window, frames, unit)
    number = int(frames // window)
    if number < 1:
        raise NothingYet(f"The runs compared have {frames:,} {unit}, less than a window of {window:,}. Lower --window.")
    if (rest := frames - number * window) > frames / 100:
        notes.append(f"The last {rest:,} of {frames:,} {unit} are no whole window of {window:,} and are left out.")
    return _align(_that_reach(number * window, groups, unit, notes), window, number, notes)


def _chosen(groups: dict[str, list[Run]], texts: list[str], notes: list[str]) -> dict[str, list[Run]]:
    """The groups that --groups asks for."""
    containing = {text: [name for name in groups if text in name] for text in texts}
    chosen = {name for text, names in containing.items() for name in ([text] if text in groups else names)}
    if not chosen:
        raise NothingYet(f"--groups: no name contains {' or '.join(texts)}. There are: {', '.join(groups)}.")
    for text, names in containing.items():
        if text in groups and (others := [name for name in names if name not in chosen]):
            notes.append(f"--groups {text} is a group's whole name, so that it does not choose {', '.join(others)}.")
    return {name: members for name, members in groups.items() if name in chosen}


def _reach(members: list[Run]) -> int:
    """How far a group goes: as its longest run, or, from a table, its shortest.

    Of published ones some have an iteration less than others.
    """
    return (max if members[0].settings else min)(run.reached_frames for run in members)


def _leave_out_begun(groups: dict[str, list[Run]], notes: list[str]) -> None:
    """Takes groups that have only just begun out of `groups`."""
    longest = max(map(_reach, groups.values()))
    for name, members in list(groups.items()):
        going = all(run.reached_frames < run.planned_frames for run in members)
        if going and _reach(members) < longest / 2:
            notes.append(
                f"{name} has only begun ({_reach(members):,} {members[0].unit}) and is left out; --frames tells "
                "otherwise."
            )
            del groups[name]


def _on_common_games(groups: dict[str, list[Run]], notes: list[str]) -> dict[str, list[Run]]:
    """Cuts to the games that all groups have."""
    games = set.intersection(*({run.game for run in members} for members in groups.values()))
    if not games:
        of_each = Counter(game for members in groups.values() for game in {run.game for run in members})
        numbers = ", ".join(f"{game} ({groups_with_it})" for game, groups_with_it in of_each.most_common())
        raise NothingYet(
            f"The groups have no game in common. Choose with --groups or --games. There are the groups "
            f"{', '.join(groups)}, and the games, with the number of groups that have them, {numbers}."
        )
    for name, members in groups.items():
        if others := sorted({run.game for run in members} - games):
            notes.append(f"Only some groups have these games, which are left out of {name}: {', '.join(others)}.")
    return {name: [run for run in members if run.game in games] for name, members in groups.items()}


def common_frames(groups: dict[str, list[Run]], notes: list[str]) -> int:
    """Up to which frames is compared: as far as all groups go."""
    reach = {name: _reach(members) for name, members in groups.items()}
    shortest = min(reach, key=reach.get)
    if reach[shortest] < 0.99 * max(run.reached_frames for members in groups.values() for run in members):
        first = groups[shortest][0]
        whose = shortest if first.settings else f"every run of {shortest}"
        notes.append(f"Compared up to {reach[shortest]:,} {first.unit}, as far as {whose} goes.")
    return reach[shortest]


def nice_window(frames: int) -> int:
    """A million frames, or of runs that have no 20 of these a round number, of which they have 20 to 50."""
    if frames >= 20 * WINDOW_FRAMES:
        return WINDOW_FRAMES
    rough = max(frames / 20, 1)
    unit = 10 ** int(np.floor(np.log10(rough)))
    return int(max(unit * step for step in (1, 2, 5) if unit * step <= rough))


def _wide_enough(groups: dict[str, list[Run]], frames: int) -> int:
    """The nice window or, if episodes are too long for it, a wider one, of which there are `TABLE_WINDOWS` at least."""
    windows = [nice_window(frames)]
    while frames // (wider := windows[-1] * (2.5 if str(windows[-1])[0] == "2" else 2)) >= TABLE_WINDOWS:
        windows.append(int(wider))  # 1, 2, 5, 10, ...
    lacking = [max(_lacking(groups, window, frames // window), 0.1) for window in windows]
    return windows[lacking.index(min(lacking))]


def _lacking(groups: dict[str, list[Run]], window: int, number: int) -> float:
    """The fraction of windows in which some group has no return on a game."""
    there: dict[tuple, np.ndarray] = {}
    for name, members in groups.items():
        for run in members:
            there[name, run.game] = there.get((name, run.game), False) | (run.counts(window, number) > 0)
    return 1 - np.all(list(there.values()), axis=0).mean()


def _interval(groups: dict[str, list[Run]]) -> int:
    """The width of windows at whose ends all returns lie."""
    points = [run.frames.astype(np.int64) for members in groups.values() for run in members]
    return int(np.gcd.reduce(np.concatenate(points)))


def _fitting_window(groups: dict[str, list[Run]], window: int | None, frames: int, unit: str) -> int:
    """The window asked for, or a choice; tables and offline runs have returns at the ends of windows of their own."""
    regular = {name: members for name, members in groups.items() if unit == "updates" or not members[0].settings}
    regular = {name: members for name, members in regular.items() if any(len(run.frames) for run in members)}
    if not regular:
        return window or _wide_enough(groups, frames)
    interval = _interval(regular)
    if window and window % interval:
        raise ConfigError(f"{next(iter(regular))} has a return per {interval:,} {unit}: --window is a multiple.")
    return window or interval


def _that_reach(frames: int, groups: dict[str, list[Run]], unit: str, notes: list[str]) -> dict[str, list[Run]]:
    """Leaves out the runs, and the groups, that have not got so far."""
    kept = {name: [run for run in members if run.reached_frames >= frames] for name, members in groups.items()}
    short = [run for members in groups.values() for run in members if run.reached_frames < frames]
    notes += [f"Left out, at {run.reached_frames:,} of {frames:,} {unit}: {run.source}" for run in short]
    notes += [f"The group {name} has no run that reaches {frames:,} {unit}." for name in kept if not kept[name]]
    if not any(kept.values()):
        raise NothingYet(f"No run reaches {frames:,} {unit}. Lower --frames.")
    return {name: members for name, members in kept.items() if members}


def _align(groups: dict[str, list[Run]], window: int, number: int, notes: list[str]) -> Comparison:
    """Cuts to the games of all groups, and to the windows in which each group has a return on each game."""
    groups = _on_common_games(groups, notes)  # again, since runs that are too short have been left out
    games = sorted({run.game for members in groups.values() for run in members})
    every = [run for members in groups.values() for run in members]
    scores = {name: np.array([run.windows(window, number) for run in members]) for name, members in groups.items()}
    kept = _windows_with_returns(groups, scores, window, notes)
    for name, members in groups.items():
        scores[name] = scores[name][:, kept]
        notes += _gaps(name, members, games, scores[name])
    differ = differing(every)
    for fact in ("commit", "device"):
        if len(values := {run.facts[fact] for run in every if run.facts.get(fact)}) > 1:
            notes.append(f"The runs differ in {fact}: {', '.join(sorted(values))}.")
    if protocol := [key for key in differ if key.startswith(("Atari.", "Gymnasium."))]:
        notes.insert(0, f"The runs differ in the protocol of their games: {', '.join(protocol)}.")
    made = []
    for name, members in groups.items():
        told = {key: {run.settings.get(key, "-") for run in members} for key in differ}
        settings = {key: " or ".join(sorted(values)) for key, values in told.items()} if members[0].settings else {}
        made.append(Group(name, settings, members, scores[name]))
    return Comparison(made, games, (np.flatnonzero(kept) + 1) * window, window, notes, every[0].unit, every[0].metric)


def _windows_with_returns(groups: dict[str, list[Run]], scores: dict, window: int, notes: list[str]) -> np.ndarray:
    """Tells of each window whether every group has a return on each game in it [T]."""
    number, unit = next(iter(scores.values())).shape[1], next(iter(groups.values()))[0].unit
    kept = np.ones(number, bool)
    empty = []  # in no window has this group a return on this game
    for name, members in groups.items():
        of = np.array([run.game for run in members])
        for game in sorted(set(of)):
            there = ~np.isnan(scores[name][of == game]).all(axis=0)
            kept &= there
            empty += [] if there.any() else [f"{name} on {game}"]
    if empty:
        raise NothingYet(f"No return yet of {', '.join(empty)}. Leave it out with --groups or --games.")
    if not kept.any():
        raise NothingYet(f"No window of {window:,} {unit} has a return of each group on each game: raise --window.")
    any_return = ~np.isnan(np.concatenate(list(scores.values()))).all(axis=0)  # evaluations may be further apart
    if (lacking := any_return & ~kept).any():
        ends = (np.flatnonzero(lacking) + 1) * window
        notes.append(
            f"{len(ends)} of {number} windows are left out, since a group has no return on a game in them: those that "
            f"end at {', '.join(f'{end:,}' for end in ends[:8])}{' and more' if len(ends) > 8 else ''} {unit}."
        )
    if 1 < (windows := int(kept.sum())) <= TABLE_WINDOWS:
        notes.append(f"Tables hold the mean of all {windows} windows.")
    return kept


def _gaps(name: str, members: list[Run], games: list[str], scores: np.ndarray) -> list[str]:
    """Notes on what a group lacks: seeds of a game, returns in windows, a second seed."""
    notes = []
    replicate = lambda run: (*sorted(run.settings.items()), run.seed)
    have = {(run.game, replicate(run)) for run in members}
    everything = {replicate(run): run.seed for run in members}
    lacking = {game: sorted(seed for key, seed in everything.items() if (game, key) not in have) for game in games}
    if missing := [f"{game} (seed {', '.join(map(str, seeds))})" for game, seeds in lacking.items() if seeds]:
        notes.append(f"{name} lacks {'; '.join(missing)}. Games with more runs weigh more in IQM and optimality gap.")
    if number := int(np.isnan(scores).sum()):
        without = [run.source for run, row in zip(members, scores, strict=True) if np.isnan(row).any()]
        where = ", ".join(without[:3]) + (f" and {len(without) - 3} more" if len(without) > 3 else "")
        notes.append(f"{name} has no return in {count(number, 'window')} of {where}: its other runs count there.")
    with_returns = [run.game for run, row in zip(members, scores, strict=True) if not np.isnan(row).all()]
    if max(Counter(with_returns).values()) == 1:
        notes.append(f"{name} has one run per game: its intervals say nothing about seeds.")
    return notes
