"""Sorts runs into groups by their settings."""

from __future__ import annotations

from agents.errors import ConfigError
from comparison.run import Run


def differing(runs: list[Run]) -> list[str]:
    """Settings that are not the same in all of our runs; published ones tell none."""
    ours = [run for run in runs if run.settings]
    keys = dict.fromkeys(key for run in ours for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in ours}) > 1]


def make_groups(runs: list[Run], wanted: list[str] | None, notes: list[str]) -> dict[str, list[Run]]:
    """Sorts runs into groups by their settings; published ones by their names, and by the table they come from.

    Args:
      runs: all runs.
      wanted: the settings that make groups, by full name or its last part; None: all that differ.
      notes: gets what was merged.

    Returns:
      name -> runs, sorted by game.

    Raises:
      ConfigError: if no run has a wanted setting.
    """
    runs = _tell_data(runs)
    keys = differing(runs)
    if wanted is not None:
        known = dict.fromkeys(key for run in runs for key in run.settings)
        chosen = [key for name in wanted for key in known if name in (key, key.rpartition(".")[2])]
        for name in wanted:
            if not any(name in (key, key.rpartition(".")[2]) for key in known):
                raise ConfigError(f"--group_by: no run has a setting {name!r}. What differs: {keys or 'nothing'}.")
        if merged := [key for key in keys if key not in chosen]:
            notes.append(f"Merged runs that differ in {', '.join(merged)}.")
        keys = chosen
    groups: dict[tuple, list[Run]] = {}
    for run in _without_twins(runs, notes):
        key = tuple(run.settings.get(key) for key in keys) if run.settings else f"{run.name}, {run.table}"
        groups.setdefault(key, []).append(run)
    groups = _ordered(groups)
    titles = {key: " or ".join(sorted({run.name for run in members})) for key, members in groups.items()}
    named: dict[str, list[Run]] = {}
    for key, members in groups.items():
        alike = [other for other in groups if titles[other] == titles[key] and isinstance(other, tuple)]
        told = [i for i in range(len(keys)) if len({other[i] for other in alike}) > 1] if key in alike else []
        name = " ".join([titles[key], *(f"{keys[i].rpartition('.')[2]}={key[i]}" for i in told if key[i] is not None)])
        if name in named and members[0].table:
            name += f" ({members[0].table})"
        while name in named:
            name += "'"
        named[name] = sorted(members, key=lambda run: (run.game, run.seed))
    return named


def _ordered(groups: dict) -> dict:
    """By name, and by the values of settings as numbers; groups from tables stay as they are there, behind ours."""

    def place(key):
        if not isinstance(key, tuple):
            return (1,)
        values = []
        for value in key:
            try:
                values.append((1, float(value), ""))
            except (TypeError, ValueError):  # not set, or no number
                values.append((0 if value is None else 2, 0.0, value or ""))
        return (0, sorted({run.name for run in groups[key]}), values)

    return {key: groups[key] for key in sorted(groups, key=place)}


def _tell_data(runs: list[Run]) -> list[Run]:
    """Makes a setting of the data set where runs on the same game learned from different ones."""
    digests: dict = {}
    for run in runs:
        if run.data:
            digests.setdefault(run.game, set()).add(run.data[1])
            digests.setdefault((run.game, run.data[0]), set()).add(run.data[1])
    if all(len(of_one) == 1 for of_one in digests.values()):
        return runs
    told = []
    for run in runs:
        if run.data:
            paths, digest = run.data
            changed = len(digests[run.game, paths]) > 1  # by the same paths something else was found later
            run = run._replace(settings={**run.settings, "Dataset.paths": paths + f" ({digest[:8]})" * changed})
        told.append(run)
    return told


def _without_twins(runs: list[Run], notes: list[str]) -> list[Run]:
    """Of two runs that are alike in everything the one that got further."""
    kept: dict[tuple, Run] = {}
    for run in runs:
        name = run.source if run.table else run.name
        key = (None if run.settings else name, *sorted(run.settings.items()), run.game, run.seed)
        twin = kept.get(key)
        if twin is None or twin.reached_frames < run.reached_frames:
            kept[key] = run
        if twin is not None and twin.source != run.source:
            notes.append(
                f"{twin.source} and {run.source} have the same settings, game and seed: {kept[key].source} counts."
            )
    return list(kept.values())
