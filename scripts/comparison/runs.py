"""Reads runs: our run directories, and Dopamine's published baselines."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents import logger
from agents.environments import ROMS
from agents.run_directory import MANIFEST, MAY_CHANGE

OUTPUT = "_compare"
TAGS = {"train": "episode/return", "eval": "eval/return"}
ITERATION_FRAMES = 1_000_000  # of Dopamine's iterations
NOT_COMPARED = {"Experiment.seed", "Atari.game", "Gymnasium.id"} | MAY_CHANGE


class Run(NamedTuple):
    """One seed on one game."""

    source: str  # where it was read
    name: str  # of its settings, for people
    game: str
    seed: int
    settings: dict[str, str]  # that tell it from runs of other groups
    facts: dict[str, Any]  # that do not, but are worth a note: commit, device
    planned_frames: int
    frames: np.ndarray  # [K], of each return
    returns: np.ndarray  # [K]

    @property
    def reached_frames(self) -> int:
        """Frames of the last return; the run may have gone further without one."""
        return int(self.frames[-1]) if len(self.frames) else 0

    def windows(self, width: int, number: int) -> np.ndarray:
        """Means of the returns in (k width, (k + 1) width] for k < number; NaN where there is none."""
        window = np.ceil(self.frames / width).astype(int) - 1
        inside = (window >= 0) & (window < number)
        counts = np.bincount(window[inside], minlength=number)
        sums = np.bincount(window[inside], weights=self.returns[inside], minlength=number)
        return np.divide(sums, counts, out=np.full(number, np.nan), where=counts > 0)


def read(path, metric: str, problems: list[str]) -> list[Run]:
    """Reads all runs at a path: a folder with run directories or Dopamine's JSON files below it, or one such file.

    Args:
      path: folder, run directory, or file (.json, .csv, .csv.gz).
      metric: 'train' or 'eval', of run directories; published baselines have one metric only.
      problems: gets a line for everything that could not be read.

    Raises:
      FileNotFoundError: if there is no such path.
    """
    path = Path(path)
    if path.is_file():
        return _file(path, problems)
    if not path.is_dir():
        raise FileNotFoundError(f"There is no {path}. Pass run directories, their parents, or Dopamine's baselines.")
    runs = []
    for folder in [path, *sorted(path.rglob("*/"))]:
        if any(part.startswith(("_", ".")) for part in folder.relative_to(path).parts) or folder.name == "checkpoints":
            continue
        if (folder / MANIFEST).is_file():
            runs += _directory(folder, metric, problems)
        else:
            for file in sorted(folder.glob("*.json")):
                if not file.name.endswith(".vg.json"):  # Dopamine's plots
                    runs += _file(file, problems)
    return runs


def _directory(run_dir: Path, metric: str, problems: list[str]) -> list[Run]:
    try:
        manifest = json.loads((run_dir / MANIFEST).read_text())
        settings, protocol = dict(manifest["settings"]), manifest["protocol"]
        game = protocol.get("game") or protocol["id"].split(":")[-1]
        seed = int(settings["Experiment.seed"])
        frames_per_step = int(protocol.get("frame_skip", 1))
        planned = int(settings["Experiment.total_steps"]) * frames_per_step
        tag = TAGS[metric]
        rows = logger.read(run_dir, tag)
        points = [(float(row["frames"]), float(row[tag])) for row in rows if row.get(tag) is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{run_dir} cannot be read ({type(error).__name__}: {error}) and is left out.")
        return []
    frames, returns = np.array(points).reshape(-1, 2).T
    if np.any(np.diff(frames) < 0):
        problems.append(f"{run_dir}: the frames of metrics.jsonl go backwards; it is left out.")
        return []
    settings = {key: value for key, value in settings.items() if key not in NOT_COMPARED}
    facts = {"commit": manifest.get("git_commit"), "device": manifest.get("device")}
    name = manifest.get("title") or run_dir.parent.name
    return [Run(str(run_dir), name, game, seed, settings, facts, planned, frames, returns)]


def _file(path: Path, problems: list[str]) -> list[Run]:
    """Dopamine's baselines, in one of two layouts.

    JSON: a file per game, `<game>.json`, `<game>_CNN.json` or `<game>_Impala.json`, a list of {"Iteration", "Value",
    "Agent"}; CSV, possibly compressed: columns game, agent, run, iteration, mean_return. An iteration is a million
    frames, and games are in lower case (https://github.com/google/dopamine/tree/master/baselines/atari).
    """
    try:
        if path.suffix == ".json":
            values = _json(path)
        elif path.name.endswith((".csv", ".csv.gz")):
            values = _csv(path)
        else:
            raise ValueError("neither .json nor .csv nor .csv.gz")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        problems.append(f"{path} is not in a layout of Dopamine's baselines ({error}) and is left out.")
        return []
    camel_case = {name.lower(): name for name in ROMS}
    runs = []
    for (game, agent, run), points in values.items():
        iterations, returns = np.array(sorted(points)).T
        frames = (iterations + 1) * ITERATION_FRAMES
        runs.append(
            Run(f"{path}: {agent}, {game}, run {run}", agent, camel_case.get(game, game), run,
                {"published as": agent}, {}, int(frames[-1]), frames, returns)
        )  # fmt: skip
    return runs


def _csv(path: Path) -> dict:
    values = defaultdict(list)
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        text = io.StringIO(file.read())
    for row in csv.DictReader(text):
        values[row["game"], row["agent"], int(row["run"])].append((int(row["iteration"]), float(row["mean_return"])))
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
