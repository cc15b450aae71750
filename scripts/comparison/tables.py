"""Reads runs from tables: those of an earlier comparison, and Dopamine's published baselines."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from agents.environments import ROMS, task_name
from comparison.run import LARGEST, METRICS, UNREADABLE, Run, name_of, text_of

ITERATION_FRAMES = 1_000_000  # of Dopamine's iterations
RETURN = {"train": "return", "eval": "eval_return"}  # columns of our tables
WEIGHT = "count"  # column: of how many episodes, or evaluations, a return is the mean
CAMEL_CASE = {name.lower(): name for name in ROMS}
LAYOUTS = (
    "Read are a runs.csv of compare.py (columns group, game, seed, frames or updates, return or eval_return), "
    "Dopamine's JSON files, and a CSV of them (game, agent, run, iteration, mean_return)."
)


class NoTable(ValueError):
    """A file is none of the tables that are read; says where, and repeats nothing of what is in it."""


def read(path: Path, metric: str | None, problems: list[str]) -> list[Run]:
    """Reads what an earlier comparison wrote, `runs.csv`, or Dopamine's baselines, in one of two layouts.

    JSON: a file per game, `<game>.json`, `<game>_CNN.json` or `<game>_Impala.json`, a list of {"Iteration", "Value",
    "Agent"}; CSV, possibly compressed: columns game, agent, run, iteration, mean_return. An iteration is a million
    frames, and games are in lower case (https://github.com/google/dopamine/tree/master/baselines/atari).

    Args:
      path: file (.json, .csv, .csv.gz).
      metric: 'train' or 'eval': a table of the other is left out. None takes either.
      problems: gets a line for what could not be read.
    """
    try:
        runs = _read(path)
    except (*UNREADABLE, zlib.error, csv.Error) as error:
        # What is in a file that is none of ours is not repeated: reports are passed on.
        why = error if isinstance(error, NoTable) else type(error).__name__
        problems.append(f"{text_of(path)} is no table of runs ({why}) and is left out. {LAYOUTS}")
        return []
    if metric and runs and runs[0].metric != metric:
        has, wanted = METRICS[runs[0].metric], METRICS[metric]
        problems.append(f"{text_of(path)} has returns of {has}, not of {wanted} (--metric {metric}), and is left out.")
        return []
    return runs


def _read(path: Path) -> list[Run]:
    runs = []
    if path.suffix == ".json":
        values = _json(path)
    elif path.name.endswith((".csv", ".csv.gz")):
        rows = _rows(path)
        if "group" in rows[0]:
            return _own(path, rows)
        values = _csv(rows)
    else:
        raise NoTable("neither .json nor .csv nor .csv.gz")
    for (game, agent, run), points in values.items():
        iterations, returns = np.array(sorted(points), np.float64).T
        if not (np.all(np.abs(iterations) < 1e6) and np.all(np.abs(returns) < LARGEST)):
            raise NoTable("values that are no finite numbers")
        frames = (iterations + 1) * ITERATION_FRAMES
        source, end = f"{text_of(path)}: {text_of(agent)}, {text_of(game)}, run {run}", int(frames[-1])
        runs.append(Run(source, name_of(agent), _game(game), run, {}, {}, end, end, frames, returns))
    return runs


def _game(text: str) -> str:
    """The name of a game, which may be in lower case, as Dopamine's are."""
    return CAMEL_CASE.get(text, name_of(task_name(text)))


def _rows(path: Path) -> list[dict]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise NoTable("no rows")
    return rows


def _own(path: Path, rows: list[dict]) -> list[Run]:
    """Runs as `report.write_tables` puts them down, one after the other: of merged groups several may have one seed."""
    unit = "updates" if "updates" in rows[0] else "frames"
    metric = "eval" if "eval_return" in rows[0] else "train"
    column = RETURN[metric]
    points, behaviour = defaultdict(list), {}
    names: dict[str, str] = {}  # of groups as they are written -> for people, no two alike
    for line, row in enumerate(rows, 2):
        if (group := _cell(row, line, "group", str)) not in names:
            names[group] = name_of(group) + "'" * sum(name_of(other) == name_of(group) for other in names)
        key = names[group], _game(_cell(row, line, "game", str)), _cell(row, line, "seed", int)
        of_seed, at = points[key], _cell(row, line, unit, int)
        if not of_seed or at in of_seed[-1]:
            of_seed.append({})
        weight = _cell(row, line, WEIGHT, int) if row.get(WEIGHT) else 1
        of_seed[-1][at] = _cell(row, line, column, float), weight
        behaviour[key] = _cell(row, line, "behaviour_return", float) if row.get("behaviour_return") else None
        if not (0 < at < LARGEST and 0 <= weight < LARGEST and abs(behaviour[key] or 0) < LARGEST):
            raise NoTable(f"line {line} has a value out of range")
    runs, table = [], text_of(path)
    for key, number, values in ((key, *of) for key, of_seed in points.items() for of in enumerate(of_seed, 1)):
        frames, returns, weights = np.array([(at, *values[at]) for at in sorted(values)], np.float64).T
        there = ~np.isnan(returns) & (weights > 0)
        if not np.all(np.abs(returns[there]) < LARGEST):
            raise NoTable("it has returns out of range")
        (group, game, seed), end = key, int(frames[-1])
        source = f"{table}: {group}, {game}, seed {seed}" + f" (run {number})" * (len(points[key]) > 1)
        read = frames[there], returns[there]
        of_table = {"table": table, "metric": metric, "weights": weights[there]}
        runs.append(Run(source, group, game, seed, {}, {}, end, end, *read, unit, behaviour[key], **of_table))
    return runs


def _cell(row: dict, line: int, column: str, kind: type):
    """A value of a table; an empty cell is a return that is not there, and 3.0 a whole number, as pandas writes them.

    Raises:
      NoTable: if it is of another kind.
    """
    try:
        text = row[column]
        if kind is str:
            return text.strip()
        value = float(text or "nan")
        if kind is int and value != int(value):
            raise ValueError
        return kind(value)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise NoTable(f"line {line}, column {column}") from error


def _csv(rows: list[dict]) -> dict:
    values = defaultdict(list)
    for line, row in enumerate(rows, 2):
        game, agent = (_cell(row, line, column, str) for column in ("game", "agent"))
        point = _cell(row, line, "iteration", int), _cell(row, line, "mean_return", float)
        values[game, agent, _cell(row, line, "run", int)].append(point)
    return values


def _json(path: Path) -> dict:
    """Runs are not numbered there: a file lists either one run after the other, or all runs of each iteration."""
    game, _, network = path.stem.partition("_")
    values, of_agent = defaultdict(list), defaultdict(list)
    rows = json.loads(path.read_text())
    if not isinstance(rows, list):
        raise NoTable("not a list")
    for row in rows:
        of_agent[f"{network} {row['Agent']}".strip()].append((int(row["Iteration"]), float(row["Value"])))
    for agent, points in of_agent.items():
        by_iteration = len(points) > 1 and points[0][0] == points[1][0]
        seen, run, before = defaultdict(int), 0, -1
        for iteration, value in points:
            if by_iteration:
                run, seen[iteration] = seen[iteration], seen[iteration] + 1
            elif iteration <= before:
                run += 1
            before = iteration
            values[game, agent, run].append((iteration, value))
    return values
