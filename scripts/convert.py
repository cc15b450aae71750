#!/usr/bin/env python
"""Converts files of the DQN Replay Dataset to logs that `train.py --dataset` reads, one for each checkpoint.

examples:
  python scripts/convert.py PATH/Pong/1/replay_logs --game Pong --output data/Pong
  python scripts/convert.py PATH/Pong/1/replay_logs --game Pong --output data/Pong --checkpoints 0 10 20
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from pathlib import Path

from agents import launch
from agents.checkpointing import run_directory
from agents.checkpointing.checkpointer import Checkpointer
from agents.environments import Atari, game_of, protocol
from agents.errors import ConfigError
from agents.recording import MANIFEST, read_protocol
from replay import dqn_replay
from replay.files import read_json, write_durably
from replay.log import DIRECTORY


def convert(folder: Path, number: int, environment: Atari, output: Path) -> int:
    """Writes one checkpoint to a folder that appears once it is complete.

    Returns:
      The number of transitions; 0, and nothing is written, if no episode is whole.
    """
    partial, new = output.with_name(f"{output.name}.partial"), not output.parent.exists()
    with run_directory.lock(partial):
        try:
            for name in ("checkpoints", DIRECTORY):  # of one that was interrupted
                shutil.rmtree(partial / name, ignore_errors=True)
            transitions = episodes = 0
            with contextlib.closing(Checkpointer(partial, keep_replay=True)) as checkpointer:
                for step in dqn_replay.read(folder, number):
                    checkpointer.append(step)
                    transitions += not step.first[0]
                    episodes += step.terminated[0]
                checkpointer.save(transitions, {}, {"converted": True}, 0)
            if not episodes:
                return 0
            about = {"protocol": protocol(environment), "converted_from": _origin(folder, number)}
            write_durably(partial / MANIFEST, json.dumps(about, indent=2).encode())
            partial.rename(output)
            return transitions
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):  # if there is something in it
                if new:
                    output.parent.rmdir()


def _origin(folder: Path, number: int) -> str:
    return f"{folder.resolve()}, checkpoint {number}"


def refuse_other(output: Path, game: str, origin: str) -> None:
    """Raises ConfigError unless what is there is of a game and was converted from the same files."""
    there = game_of(read_protocol(output)[0])
    if there != game:
        raise ConfigError(f"{output} is of {there}. Choose another --output for {game}.")
    if (before := read_json(output / MANIFEST).get("converted_from")) != origin:
        raise ConfigError(f"{output} is of {before}, not of {origin}. Choose another --output for these.")


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=launch.path, help="folder with files like $store$_observation_ckpt.0.gz")
    parser.add_argument("--game", required=True, help="Atari game in CamelCase, e.g. MsPacman")
    parser.add_argument("--output", type=launch.path, required=True, help="parent of the logs")
    parser.add_argument("--checkpoints", type=int, nargs="+", metavar="K", help="only these (default: all)")
    args = parser.parse_args(argv)
    launch.refuse_empty(parser, args)
    try:
        environment = Atari(args.game)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    there = dqn_replay.checkpoints(args.folder)
    if not there:
        raise ConfigError(f"{args.folder} holds no file like $store$_observation_ckpt.0.gz.")
    wanted = there if args.checkpoints is None else args.checkpoints
    if missing := sorted(set(wanted) - set(there)):
        raise ConfigError(f"--checkpoints: {args.folder} lacks {missing}; it has {there[0]} to {there[-1]}.")
    found = False
    for number in wanted:
        output = args.output / f"ckpt_{number}"
        if output.exists():
            refuse_other(output, args.game, _origin(args.folder, number))
            print(f"{output} is there already.")
            found = True
            continue
        screen = (environment.screen, environment.screen)
        dqn_replay.check(args.folder, number, screen, len(environment.actions()))
        if transitions := convert(args.folder, number, environment, output):
            print(f"{output}: {transitions:,} transitions", flush=True)
            found = True
        else:
            print(f"No episode is whole in checkpoint {number}, which is left out.")
    if not found:
        raise ConfigError(f"No episode is whole in these checkpoints of {args.folder}: nothing to learn from.")
    return 0


if __name__ == "__main__":
    launch.run(main)
