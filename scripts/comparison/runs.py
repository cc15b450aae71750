"""Reads runs: our run directories, and Dopamine's published baselines. Nothing that is read is ever executed."""

from __future__ import annotations

import csv
import gzip
import json
import os
import zlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agents import launch
from agents.environments import ROMS
from agents.logger import METRICS
from agents.run_directory import MANIFEST, MAY_CHANGE
from replay.log import read_json

OUTPUT, MARKER = "_compare", "comparison.json"  # the marker tells a folder of results
SKIPPED = {OUTPUT, "_sweep", "checkpoints", "replay"}
TAGS = {"train": "episode/return", "eval": "eval/return"}
LONGEST, LARGEST = 200, 1e12  # names; returns
ITERATION_FRAMES = 1_000_000  # of Dopamine's iterations
NOT_COMPARED = {"Experiment.seed", "Experiment.log_replay", "Atari.game", "Gymnasium.id"} | MAY_CHANGE
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

    def windows(self, width: int, number: int) -> np.ndarray:
        """Means of the returns in (k width, (k + 1) width] for k < number; NaN where there is none."""
        window = np.ceil(self.frames / width).astype(int) - 1
        inside = (window >= 0) & (window < number)
        counts = np.bincount(window[inside], minlength=number)
        sums = np.bincount(window[inside], weights=self.returns[inside], minlength=number)
        return np.divide(sums, counts, out=np.full(number, np.nan), where=counts > 0)


def read(path, metric: str | None, problems: list[str]) -> list[Run]:
    """Reads all runs at a path: a folder with run directories or Dopamine's JSON files below it, or one such file.

    Args:
      path: folder, run directory, or file (.json, .csv, .csv.gz).
      metric: 'train' or 'eval', of run directories; None is 'eval' of offline runs and 'train' of others. Published
        baselines have one metric only.
      problems: gets a line for everything that could not be read.

    Raises:
      FileNotFoundError: if there is no such path.
    """
    path = Path(path)
    if path.is_file():
        return _file(path, problems)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no {path}. Pass run directories, their parents, or Dopamine's baselines.")
    runs, seen = [], set()
    for folder, folders, files in os.walk(path, followlinks=True):
        if MARKER in files or (real := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
        if MANIFEST in files:
            runs += _directory(Path(folder), metric, problems)
        else:
            for name in sorted(files):
                if name.endswith(".json") and not name.endswith(".vg.json"):  # which are Dopamine's plots
                    runs += _file(Path(folder, name), problems)
    return runs


def _text(value) -> str:
    """Anything as one line of printable text."""
    return launch.printable(str(value)).replace("\n", " ")


def _name(value) -> str:
    """A short name, which no spreadsheet takes for a formula."""
    return _text(value)[:LONGEST].lstrip("=+-@") or "-"


def _directory(run_dir: Path, metric: str | None, problems: list[str]) -> list[Run]:
    try:
        manifest = read_json(run_dir / MANIFEST)
        settings = {_text(key): _text(value) for key, value in dict(manifest["settings"]).items()}
        protocol = manifest["protocol"]
        game = _name(protocol.get("game") or str(protocol["id"]).split(":")[-1])
        dataset = manifest.get("dataset")
        unit, behaviour_return = "frames", None
        if dataset is not None:
            unit, behaviour_return = "updates", dataset["behaviour_return"]
            if behaviour_return is not None and not np.isfinite(float(behaviour_return)):
                raise ValueError("a behaviour return that is no finite number")
        metric = metric or ("train" if dataset is None else "eval")
        frames_per_step = int(protocol.get("frame_skip", 1)) if dataset is None else 1
        planned = int(settings["Experiment.total_steps"]) * frames_per_step
        if frames_per_step < 1 or planned < 1:
            raise ValueError(f"{planned} frames planned")
        points, reached, damaged = _points(run_dir / METRICS, TAGS[metric], unit)
        frames, returns = np.array(points, np.float64).reshape(-1, 2).T
        if not (np.isfinite(frames).all() and np.all(np.abs(returns) < LARGEST)):
            raise ValueError("returns or frames that are no finite numbers")
        if reached > 2 * planned:  # the last steps of all games go a little beyond
            raise ValueError(f"{reached} frames, where {planned} were planned")
        if np.any(np.diff(frames) < 0):
            raise ValueError("frames that go backwards")
        if metric == "eval":  # made at the first step of all games at or beyond the one they were due at
            frames = np.maximum(frames - (int(manifest["num_envs"]) - 1) * frames_per_step, 1)
        facts = {"commit": _text(manifest.get("git_commit")), "device": _text(manifest.get("device"))}
        name, seed = _name(manifest.get("title") or run_dir.parent.name), int(settings["Experiment.seed"])
    except UNREADABLE as error:
        why = f"{type(error).__name__}: {_text(error)[:200]}"
        problems.append(f"{_text(run_dir)} cannot be read ({why}) and is left out.")
        return []
    if damaged:
        problems.append(f"{_text(run_dir)}: {damaged} damaged lines of {METRICS} are left out.")
    settings = {key: value for key, value in settings.items() if key not in NOT_COMPARED}
    counts = planned, reached, frames, returns
    return [Run(_text(run_dir), name, game, seed, settings, facts, *counts, unit, behaviour_return)]


def _points(path: Path, tag: str, unit: str) -> tuple[list, int, int]:
    """The (frames, return) of a tag, the last frames of any, and the number of damaged lines with the tag.

    A last line that was cut short by a crash is no damage.
    """
    points, damaged, reached, line = [], 0, 0, ""
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name}")
    with path.open(errors="replace") as file:
        for line in file:
            if tag in line:  # much faster than to parse all
                try:
                    row = json.loads(line)
                    if row[tag] is not None:
                        points.append((row[unit], row[tag]))
                    reached = row[unit]
                except (json.JSONDecodeError, KeyError):
                    damaged += line.endswith("\n")
    try:
        reached = max(reached, json.loads(line)[unit])
    except (json.JSONDecodeError, KeyError):
        pass  # cut short, or empty
    return points, int(reached), damaged


def _file(path: Path, problems: list[str]) -> list[Run]:
    """Dopamine's baselines, in one of two layouts.

    JSON: a file per game, `<game>.json`, `<game>_CNN.json` or `<game>_Impala.json`, a list of {"Iteration", "Value",
    "Agent"}; CSV, possibly compressed: columns game, agent, run, iteration, mean_return. An iteration is a million
    frames, and games are in lower case (https://github.com/google/dopamine/tree/master/baselines/atari).
    """
    camel_case = {name.lower(): name for name in ROMS}
    runs = []
    try:
        if path.suffix == ".json":
            values = _json(path)
        elif path.name.endswith((".csv", ".csv.gz")):
            values = _csv(path)
        else:
            raise ValueError("neither .json nor .csv nor .csv.gz")
        for (game, agent, run), points in values.items():
            iterations, returns = np.array(sorted(points), np.float64).T
            if not (np.all(np.abs(iterations) < 1e6) and np.all(np.abs(returns) < LARGEST)):
                raise ValueError("values that are no finite numbers")
            frames = (iterations + 1) * ITERATION_FRAMES
            source, end = f"{_text(path)}: {_text(agent)}, {_text(game)}, run {run}", int(frames[-1])
            game = camel_case.get(game, _name(game))
            runs.append(Run(source, _name(agent), game, run, {}, {}, end, end, frames, returns))
    except (*UNREADABLE, zlib.error, csv.Error) as error:
        # What is in a file that is none of ours is not repeated: reports are passed on.
        problems.append(f"{_text(path)} is not in a layout of Dopamine's baselines ({type(error).__name__}): left out.")
        return []
    return runs


def _csv(path: Path) -> dict:
    values = defaultdict(list)
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        for row in csv.DictReader(file):
            point = int(row["iteration"]), float(row["mean_return"])
            values[row["game"], row["agent"], int(row["run"])].append(point)
    if not values:
        raise ValueError("no rows")
    return values


def _json(path: Path) -> dict:
    """Runs are not numbered there: a file lists either one run after the other, or all runs of each iteration."""
    game, _, network = path.stem.partition("_")
    values, of_agent = defaultdict(list), defaultdict(list)
    rows = json.loads(path.read_text())
    if not isinstance(rows, list):
        raise ValueError("not a list")
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
