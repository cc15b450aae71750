"""Reads runs: our run directories, and tables. Nothing that is read is ever executed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np

from agents.checkpointing.run_directory import MANIFEST, MAY_CHANGE
from agents.environments import game_of
from agents.reporting.logger import METRICS
from comparison import tables
from comparison.run import LARGEST, UNREADABLE, Run, count, name_of, text_of
from replay.files import read_json

OUTPUT, MARKER = "_compare", "comparison.json"  # the marker tells a folder of results
SKIPPED = {OUTPUT, "_sweep", "checkpoints", "replay"}
TAGS = {"train": "episode/return", "eval": "eval/return"}
NOT_COMPARED = {"Experiment.seed", "Experiment.log_replay", "Atari.game", "Gymnasium.id"}
NOT_COMPARED |= MAY_CHANGE
TORSO, DATA = "Experiment.torso_from", "Dataset.paths"


def read(path, metric: str | None, problems: list[str]) -> list[Run]:
    """Reads all runs at a path: a folder with run directories or Dopamine's JSON files below it, or one such file.

    Args:
      path: folder, run directory, or file (.json, .csv, .csv.gz).
      metric: 'train' or 'eval'; None is 'eval' of offline runs and 'train' of others. Tables have one of the two only.
      problems: gets a line for everything that could not be read.

    Raises:
      FileNotFoundError: if there is no such path.
    """
    path = Path(path)
    if path.is_file():
        return tables.read(path, metric, problems)
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
                    runs += tables.read(Path(folder, name), metric, problems)
    return runs


def _directory(run_dir: Path, metric: str | None, problems: list[str]) -> list[Run]:
    try:
        manifest = read_json(run_dir / MANIFEST)
        settings = {text_of(key): text_of(value) for key, value in dict(manifest["settings"]).items()}
        protocol = manifest["protocol"]
        game = name_of(game_of(protocol))
        dataset = manifest.get("dataset")
        unit, behaviour_return, data = "frames", None, None
        if dataset is not None:
            unit, behaviour_return = "updates", dataset["behaviour_return"]
            data = _of_any_game(settings.get(DATA, ""), game), text_of(dataset["digest"])
            behaviour_return = None if behaviour_return is None else float(behaviour_return)
            if behaviour_return is not None and not np.isfinite(behaviour_return):
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
        num_envs = int(manifest["num_envs"])
        if reached > 2 * planned + num_envs * frames_per_step:  # the last steps of all games go a little beyond
            raise ValueError(f"{reached} frames, where {planned} were planned")
        if np.any(np.diff(frames) < 0):
            raise ValueError("frames that go backwards")
        if metric == "eval":  # made at the first step of all games at or beyond the one they were due at
            frames = np.maximum(frames - (num_envs - 1) * frames_per_step, 1)
        facts = {"commit": text_of(manifest.get("git_commit")), "device": text_of(manifest.get("device"))}
        name, seed = name_of(manifest.get("title") or run_dir.parent.name), int(settings["Experiment.seed"])
    except UNREADABLE as error:
        why = f"{type(error).__name__}: {text_of(error)[:200]}"
        problems.append(f"{text_of(run_dir)} cannot be read ({why}) and is left out.")
        return []
    if damaged:
        problems.append(f"{text_of(run_dir)}: left out of {METRICS}: {count(damaged, 'damaged line')}.")
    settings = {key: value for key, value in settings.items() if key not in NOT_COMPARED}
    if TORSO in settings:
        settings[TORSO] = _of_any_game(settings[TORSO], game)
    counts = planned, reached, frames, returns
    of_data = unit, behaviour_return, data
    return [Run(text_of(run_dir), name, game, seed, settings, facts, *counts, *of_data, metric=metric)]


def _of_any_game(path: str, game: str) -> str:
    """A path of a data set or of another run, without the game and the seed that it is of."""
    return re.sub(r"\bseed\d+\b", "seed*", path.replace(game, "*"))


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
