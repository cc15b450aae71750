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
from agents.checkpointing.checkpointer import Checkpointer
from agents.environments import Atari, game_of, protocol
from agents.errors import ConfigError
from agents.recording import MANIFEST, read_protocol
from replay import dqn_replay
from replay.files import write_durably


def convert(folder: Path, number: int, environment: Atari, output: Path) -> int:
    """Writes one checkpoint to a folder that appears once it is complete; returns the number of transitions."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        transitions = 0
        with contextlib.closing(Checkpointer(partial, keep_replay=True)) as checkpointer:
            for step in dqn_replay.read(folder, number):
                checkpointer.append(step)
                transitions += not step.first[0]
            checkpointer.save(transitions, {}, {"converted": True}, 0)
        about = {"protocol": protocol(environment), "converted_from": f"{folder}, checkpoint {number}"}
        write_durably(partial / MANIFEST, json.dumps(about, indent=2).encode())
        partial.rename(output)
        return transitions
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with contextlib.suppress(OSError):  # if there is nothing in it
            output.parent.rmdir()


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
            if (there_is := game_of(read_protocol(output)[0])) != args.game:
                raise ConfigError(f"{output} is of {there_is}. Choose another --output for {args.game}.")
            print(f"{output} is there already.")
            found = True
            continue
        screen = (environment.screen, environment.screen)
        if not dqn_replay.check(args.folder, number, screen, len(environment.actions())):
            print(f"No episode ends in checkpoint {number}, which is left out.")
            continue
        print(f"{output}: {convert(args.folder, number, environment, output):,} transitions", flush=True)
        found = True
    if not found:
        raise ConfigError(f"No episode ends in these checkpoints of {args.folder}: there is nothing to learn from.")
    return 0


if __name__ == "__main__":
    launch.run(main)
