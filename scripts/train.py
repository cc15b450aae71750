#!/usr/bin/env python
"""Trains an agent on one game and ends with an evaluation. The same command again resumes where it stopped.

examples:
  python scripts/train.py --game Breakout                         DQN + HL-Gauss, the paper's values, fast preset
  python scripts/train.py --game Pong --head mse --preset paper   the paper's baseline under its protocol
  python scripts/train.py --game Asterix --preset quick --steps 100000 --seed 1
  python scripts/train.py --env MinAtar/Breakout-v1 --head two_hot
  python scripts/train.py --env CartPole-v1 --head mse --steps 50000
  python scripts/train.py --game Pong --agent cql --dataset runs/Pong --updates 100000     from a replay log
  python scripts/train.py --base_dir=runs --gin_files=configs/dqn.gin --gin_files=configs/heads/hl_gauss.gin \\
      --gin_bindings='Learner.batch_size = 64'
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from agents import launch

if __name__ == "__main__":
    launch.prepare()

from agents import config, messages, run_directory
from agents.checkpoint import Checkpoint, newest, newest_intact
from agents.config_checks import ALLOW_IMPORT
from agents.loop import train
from agents.offline import OfflineRun, OfflineTrainer
from agents.run import Run
from agents.trainer import Trainer
from replay.log import DamagedError

DEFAULT_HEADS = {"rainbow": "c51", "full_rainbow": "c51"}  # the agents' own; hl_gauss for all others
MOST_SEEDS = 1_000  # in one process
OFFLINE = ("cql",)  # agents that learn from a data set, and have no schedule for games


def parse_args(argv=None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
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
            raise config.ConfigError(f"More than one of configs/{folder} is named: {', '.join(named)}. Keep one.")
        files += named or ([config.shipped(folder, default)] if default else [])
    return [config.BASE, *files, *(file for file in args.gin_files if config.folder(file) not in folders)]


def num_devices(mesh: str | None) -> int | None:
    """N of `--mesh data=N`."""
    if mesh is None:
        return None
    axis, _, number = mesh.partition("=")
    if axis != "data" or not number.isdecimal() or len(number) > 6:
        raise config.ConfigError(f"--mesh is {mesh!r}; it takes data=N for N devices, e.g. data=4.")
    return int(number)


def bindings(args) -> list[str]:
    """The gin bindings that the flags stand for, then the user's own."""
    flags = {
        "Atari.game": args.game,
        "Gymnasium.id": args.env,
        "Experiment.seed": args.seed,
        "Experiment.total_steps": args.updates if args.steps is None else args.steps,
        "Dataset.paths": args.dataset,
        "Experiment.torso_from": args.freeze_torso,
        "QNetwork.freeze_torso": args.freeze_torso is not None or None,
        "Experiment.num_envs": args.num_envs,
        "Experiment.warmup_steps": args.warmup_steps,
        "Replay.capacity": args.replay_capacity,
        "Learner.num_devices": num_devices(args.mesh),
        "Experiment.log_replay": args.log_replay or None,
        "Experiment.eval_every_steps": args.eval_every,
        "Experiment.eval_episodes": args.eval_episodes,
    }
    if any(not binding.strip() for binding in args.gin_bindings):
        raise config.ConfigError("--gin_bindings is empty; it takes e.g. 'Learner.batch_size = 64'.")
    return [f"{name} = {value!r}" for name, value in flags.items() if value is not None] + args.gin_bindings


def allowed(args) -> list[str]:
    """The packages that the config may import: those of --allow_import, and that of an environment named by flag."""
    module, colon, _ = (args.env or "").rpartition(":")
    return args.allow_import + ([module] if colon else [])


def load(args, **more) -> config.Config:
    """Loads the configuration of a command line, with `more` bindings to `Experiment`."""
    files, lines = gin_files(args), bindings(args)
    cfg = config.load(files, lines, allowed(args))
    if cfg.experiment.dataset is None and args.updates is not None:
        raise config.ConfigError("--updates is the length of an offline run (--agent cql). Use --steps or --frames.")
    if cfg.experiment.dataset is not None and (args.steps, args.frames) != (None, None):
        raise config.ConfigError("An offline run makes no steps in games: use --updates.")
    if args.frames is not None:
        more["total_steps"] = args.frames // cfg.experiment.environment.frames_per_step
    if more:
        lines += [f"Experiment.{name} = {value}" for name, value in more.items()]
        cfg = config.load(files, lines, allowed(args))
    return cfg


class Job(NamedTuple):
    """A seed of the command line: its configuration, and the run directory as it is found."""

    cfg: config.Config
    title: str
    run_dir: Path
    manifest: dict | None  # None if there is no run yet
    checkpoint: Checkpoint | None  # its newest one

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.cfg.experiment.seed

    @property
    def start(self) -> int:
        """Agent steps it goes on from."""
        return self.checkpoint.agent_steps if self.checkpoint else 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        done = self.start >= self.cfg.experiment.total_steps
        return done and not self.checkpoint.progress.get("owes_evaluation")

    def intact(self) -> bool:
        """Whether the state in the newest checkpoint is as it was written."""
        try:
            self.checkpoint.verify(replay=False)
        except DamagedError:
            return False
        return True

    @property
    def how(self) -> str:
        """How it starts."""
        if self.checkpoint:
            return f"goes on at {self.start:,} {self.cfg.experiment.unit}"
        return "starts over: it has no checkpoint" if self.manifest else "new"


def job(args) -> Job:
    """Loads a configuration and looks into its run directory, without changing it."""
    cfg = load(args)
    files = gin_files(args)[1:]
    name = run_directory.name(cfg.experiment, files, args.gin_bindings)
    run_dir = Path(args.run_dir or Path(args.base_dir, name))
    try:
        str(run_dir).encode()
    except UnicodeEncodeError as error:
        raise config.ConfigError(f"{str(run_dir)!r} is no name in UTF-8. Choose another directory.") from error
    manifest = run_directory.read_manifest(run_dir)
    if cfg.settings["Experiment.num_envs"] == "0":  # a run keeps the number it was started with
        args = argparse.Namespace(**vars(args) | {"num_envs": None})
        cfg = load(args, num_envs=manifest["num_envs"] if manifest else cfg.experiment.num_envs)
    if manifest:
        run_directory.refuse_other_settings(run_dir, manifest["settings"], cfg.settings)
    return Job(cfg, run_directory.title(files), run_dir, manifest, newest(run_dir) if manifest else None)


def jobs(args) -> list[Job]:
    """One job, or with `--seeds` one for each seed."""
    first = job(args)
    if args.seeds is None:
        return [first]
    if args.seeds < 1:
        raise config.ConfigError(f"--seeds is a number of seeds; got {args.seeds}.")
    if any("Experiment.seed" in binding.partition("=")[0] for binding in args.gin_bindings):
        raise config.ConfigError("--seeds counts from --seed: pass that instead of a binding of Experiment.seed.")
    if args.run_dir:
        raise config.ConfigError("--run_dir is one directory, and --seeds needs one for each. Use --base_dir instead.")
    x = first.cfg.experiment
    same = vars(args) | {"num_envs": x.num_envs}  # where it was left to the machine, too
    others = [argparse.Namespace(**same | {"seed": x.seed + i}) for i in range(1, args.seeds)]
    return [first, *map(job, others)]


def build(experiment) -> Trainer:
    """Builds the trainer; writes nothing.

    Raises:
      ConfigError: if what the settings describe cannot be computed.
      MemoryError: if it does not fit.
    """
    try:
        trainer = (OfflineTrainer if experiment.dataset is not None else Trainer)(experiment)
        trainer.trace()
        return trainer
    except (config.ConfigError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever JAX, flax and optax make of values that nobody foresaw
        reason = str(error).strip().partition("\n")[0][:300]
        raise config.ConfigError(
            f"Nothing can be trained with these settings: {type(error).__name__}: {reason}"
        ) from error


def refuse_other_data(job: Job, trainer: OfflineTrainer) -> None:
    """Raises ConfigError if the run was begun with another data set."""
    if job.manifest and (job.manifest.get("dataset") or {}).get("digest") != trainer.data.digest:
        paths = ", ".join(job.cfg.experiment.dataset.paths)
        raise config.ConfigError(
            f"{job.run_dir} was begun with another data set than {paths}: its logs have changed since then, or are "
            "others. Train in another --run_dir."
        )


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    if args.deterministic and launch.DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
        raise config.ConfigError(f"--deterministic found no way to set XLA_FLAGS; set it: {launch.DETERMINISTIC}")
    if args.print_config:
        print(load(args).operative_text)
        return 0
    wanted = jobs(args)
    offline, trainer = wanted[0].cfg.experiment.dataset is not None, None
    if offline:  # what is learned from may have changed since a run was begun, or finished
        trainer = build(wanted[0].cfg.experiment)
        for job in wanted:
            refuse_other_data(job, trainer)
    for job in wanted:
        if job.finished and job.intact():
            print(messages.finished(job, allowed(args)))
    todo = [job for job in wanted if not job.finished or not job.intact()]
    if not todo:
        return 0
    for job in todo:  # one that cannot go on is not touched
        newest_intact(job.run_dir, report=lambda line: None)

    trainers = [trainer or build(todo[0].cfg.experiment)]
    if len(todo) > 1 or trainers[0].experiment.seed != todo[0].seed:
        trainers = trainers[0].with_seeds([job.seed for job in todo])
    with contextlib.ExitStack() as locks:
        for job in todo:
            locks.enter_context(run_directory.lock(job.run_dir))
            if run_directory.read_manifest(job.run_dir) != job.manifest:
                raise config.ConfigError(f"Another process has just trained in {job.run_dir}. Run the command again.")
        for job, trainer in zip(todo, trainers, strict=True):  # nothing is written before all of them are free
            if job.manifest:
                run_directory.resume(job.run_dir, job.manifest, job.start, job.cfg)
            else:
                run_directory.create(job.run_dir, trainer, job.cfg, job.title)
        presets = [Path(file) for file in gin_files(args) if config.folder(file) == "presets"]
        messages.announce(trainers[0], todo, presets, args.run_dir or args.base_dir)
        runs = [
            (OfflineRun if offline else Run)(trainer, job.run_dir, job.cfg.operative_text, job.cfg.settings)
            for job, trainer in zip(todo, trainers, strict=True)
        ]
        interrupted_by = train(runs, args.profile)
    for run in runs:
        print(messages.outcome(run, allowed(args)))
    return 128 + interrupted_by if interrupted_by else 0


if __name__ == "__main__":
    launch.run(main)
