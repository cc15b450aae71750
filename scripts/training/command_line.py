"""What a command line of `train.py` means: gin files and bindings, and the configuration that they make."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from agents import launch
from agents.configuration import config
from agents.configuration.trust import ALLOW_IMPORT
from agents.errors import ConfigError

DEFAULT_HEADS = {"rainbow": "c51", "full_rainbow": "c51"}  # the agents' own; hl_gauss for all others
MOST_SEEDS = 1_000  # in one process
LONG = 10**9  # agent steps
OFFLINE = ("cql",)  # agents that learn from a data set, and have no schedule for games
OWN_TORSO = ("soft_moe",)  # agents that are DQN but for the torso
DESCRIPTION = """\
Trains an agent on one game and ends with an evaluation. The same command again resumes where it stopped.

examples:
  python scripts/train.py --game Breakout                         DQN + HL-Gauss, the paper's values, fast preset
  python scripts/train.py --game Pong --head mse --preset paper   the paper's baseline under its protocol
  python scripts/train.py --game Asterix --preset quick --steps 100000 --seed 1
  python scripts/train.py --env MinAtar/Breakout-v1 --head two_hot
  python scripts/train.py --env CartPole-v1 --head mse --steps 50000 --warmup_steps 1000 \\
      --gin_bindings='DQN.epsilon_decay_steps = 10000'
  python scripts/train.py --game Pong --agent cql --dataset runs/Pong --updates 100000     from a replay log
  python scripts/train.py --base_dir=runs --gin_files=configs/dqn.gin --gin_files=configs/heads/hl_gauss.gin \\
      --gin_bindings='Learner.batch_size = 64'
"""


def parse_args(argv=None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--agent", help="agent: a file of configs/ (default: dqn, unless --gin_files names one)")
    add("--head", help="value head: a file of configs/heads/ (default: c51 for Rainbow, else hl_gauss)")
    add("--preset", help="paper, fast, quick or minatar (default: fast; minatar for MinAtar)")
    add("--torso", help="torso: a file of configs/torsos/")
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--game", help="Atari game in CamelCase, e.g. MsPacman")
    task.add_argument(
        "--env", help="id of a Gymnasium environment, e.g. CartPole-v1, MinAtar/Breakout-v1, module:Id-v0"
    )
    add("--seed", type=int, help="determines parameters, games, exploration and sampling")
    add("--seeds", type=int, metavar="K", help="train K seeds in one process, from --seed on (for accelerators)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of the run in agent steps")
    length.add_argument("--frames", type=int, help="length of the run in frames (4 per agent step on Atari)")
    length.add_argument("--updates", type=int, help="length of an offline run in updates")
    add("--num_envs", type=int, help="games stepped in parallel; 0 chooses by the machine")
    add("--warmup_steps", type=int, help="agent steps before the first update")
    add("--replay_capacity", type=int, help="transitions kept")
    add("--mesh", metavar="data=N", help="split each batch over N devices of this host, for large networks")
    add("--eval_every", type=int, help="agent steps, offline updates, between evaluations; 0: only at the end")
    add("--eval_episodes", type=int, help="episodes per evaluation")
    add("--base_dir", default="runs", help="parent of the run directories (default: runs)")
    add("--run_dir", help="exactly this run directory, instead of one named by the settings")
    add("--gin_files", action="append", default=[], metavar="FILE", help="gin file, may be repeated; later ones win")
    add("--gin_bindings", action="append", default=[], metavar="BINDING", help="gin binding, may be repeated")
    add("--allow_import", action="append", default=[], metavar="PKG", help=ALLOW_IMPORT)
    add("--dataset", nargs="+", metavar="DIR", help="of --agent cql: runs with a replay log, or their parents")
    add("--freeze_torso", metavar="RUN", help="train a fresh last layer on the frozen torso of this run, or checkpoint")
    add("--log_replay", action="store_true", help="keep every transition of the run, as a data set")
    add("--deterministic", action="store_true", help="the same bits on a GPU, too, where XLA can; slower")
    add("--print_config", action="store_true", help="print the operative config and stop")
    add("--profile", action="store_true", help="write a trace of some updates to the run directory")
    args = parser.parse_args(argv)
    launch.refuse_empty(parser, args)
    if args.seeds is not None and args.seeds > MOST_SEEDS:
        parser.error(f"--seeds is at most {MOST_SEEDS}; got {args.seeds}")
    return args


def gin_files(args) -> list[str]:
    """The gin files that a command line names, by short form, directly or by default, in the order they compose."""
    is_minatar = (args.env or "").startswith("MinAtar/")
    agents = [args.agent or "dqn", *(Path(file).stem for file in args.gin_files if config.folder(file) == ".")]
    # Folder of configs/, the name given for it, and the default; the user's own files come last.
    folders = {
        "environments": (("minatar" if is_minatar else "gymnasium") if args.env else None, None),
        ".": (args.agent, "dqn"),
        "heads": (args.head, DEFAULT_HEADS.get(agents[-1], "hl_gauss")),
        "presets": (args.preset, None if agents[-1] in OFFLINE else "minatar" if is_minatar else "fast"),
        "torsos": (args.torso, None),
    }
    files = []
    for folder, (name, default) in folders.items():
        named = [config.shipped(folder, name)] if name else []
        named += [file for file in args.gin_files if config.folder(file) == folder]
        named = list({config.resolve(file): file for file in named}.values())
        if len(named) > 1:
            raise ConfigError(f"More than one of configs/{folder} is named: {', '.join(named)}. Keep one.")
        if named and folder == "torsos" and agents[-1] in OWN_TORSO:
            raise ConfigError(
                f"The agent {agents[-1]} is DQN with a torso of its own. Pass --agent dqn for another one, {named[0]}."
            )
        if named and folder == "presets" and agents[-1] in OFFLINE:
            raise ConfigError(f"The agent {agents[-1]} plays no games, so it takes no preset: leave it out.")
        files += named or ([config.shipped(folder, default)] if default else [])
    return [config.BASE, *files, *(file for file in args.gin_files if config.folder(file) not in folders)]


def num_devices(mesh: str | None) -> int | None:
    """N of `--mesh data=N`."""
    if mesh is None:
        return None
    axis, _, number = mesh.partition("=")
    if axis != "data" or not number.isdecimal() or len(number) > 6:
        raise ConfigError(f"--mesh is {mesh!r}; it takes data=N for N devices, e.g. data=4.")
    return int(number)


def bindings(args) -> list[str]:
    """The gin bindings that the flags stand for, then the user's own."""
    flags = {
        "Atari.game": args.game,
        "Gymnasium.id": args.env,
        "Experiment.seed": args.seed,
        "Experiment.total_steps": args.steps,  # the others' unit depends on the configuration
        "Dataset.paths": args.dataset,
        "Experiment.torso_from": args.freeze_torso and os.path.normpath(args.freeze_torso),
        "Experiment.num_envs": args.num_envs,
        "Experiment.warmup_steps": args.warmup_steps,
        "Replay.capacity": args.replay_capacity,
        "Learner.num_devices": num_devices(args.mesh),
        "Experiment.log_replay": args.log_replay or None,
        "Experiment.eval_every_steps": args.eval_every,
        "Experiment.eval_episodes": args.eval_episodes,
    }
    if any(not binding.strip() for binding in args.gin_bindings):
        raise ConfigError("--gin_bindings is empty; it takes e.g. 'Learner.batch_size = 64'.")
    return [f"{name} = {value!r}" for name, value in flags.items() if value is not None] + args.gin_bindings


def allowed(args) -> list[str]:
    """The packages that the config may import: those of --allow_import, and that of an environment named by flag."""
    module, colon, _ = (args.env or "").rpartition(":")
    return args.allow_import + ([module] if colon else [])


def load(args, num_envs: int | None = None) -> config.Config:
    """Loads the configuration of a command line; `num_envs` takes the place of a number that is left to the machine."""
    files, lines = gin_files(args), bindings(args)
    if num_envs is not None:
        name = "Experiment.num_envs"
        lines = [line for line in lines if not line.partition("=")[0].strip().endswith(name)] + [f"{name} = {num_envs}"]
    length_of = lambda length: [] if length is None else [f"Experiment.total_steps = {length}"]
    if args.dataset and args.agent not in OFFLINE and not args.gin_files:
        raise ConfigError("--dataset is what an offline agent learns from: pass --agent cql, too.")
    any_length = None if args.frames is None else LONG  # so that no schedule is refused before frames are steps
    cfg = config.load(files, lines + length_of(any_length), allowed(args))
    if cfg.experiment.dataset is None and args.updates is not None:
        raise ConfigError("--updates is the length of an offline run (--agent cql). Use --steps or --frames.")
    if cfg.experiment.dataset is not None and (args.steps, args.frames) != (None, None):
        raise ConfigError("An offline run makes no steps in games: use --updates.")
    length = args.updates
    if args.frames is not None:
        length, rest = divmod(args.frames, cfg.experiment.environment.frames_per_step)
        if rest:
            raise ConfigError(
                f"--frames is a multiple of {cfg.experiment.environment.frames_per_step}, the frames of an agent step; "
                f"got {args.frames}."
            )
    if length is not None:
        cfg = config.load(files, lines + length_of(length), allowed(args))
    return cfg
