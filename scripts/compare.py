#!/usr/bin/env python
"""Compares groups of runs over games and seeds: IQM curves with intervals for TensorBoard, figures, tables, one page.

examples:
  python scripts/compare.py runs                                   groups are what differs but for game and seed
  python scripts/compare.py runs --group_by head                   one group per head, whatever else differs
  python scripts/compare.py runs PATH/dopamine/baselines/atari/data --output out    beside published runs
  python scripts/compare.py runs --watch                           again every minute, while a sweep runs
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import tempfile
import time
from pathlib import Path

from agents import launch
from agents.environments import task_name
from agents.errors import ConfigError
from comparison import alignment, analysis, events, figures, report, run, runs


def parse_args(argv=None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("logdirs", nargs="+", metavar="LOGDIR", help="run directories, their parents, or Dopamine's baselines")
    add("--output", type=launch.path, help=f"folder for the results (default: {runs.OUTPUT} in the first LOGDIR)")
    add(
        "--group_by",
        action="append",
        metavar="SETTING",
        help="group by this setting only, e.g. head (mse and huber are one); repeatable",
    )
    add(
        "--groups",
        action="append",
        metavar="TEXT",
        help="only the group of this name, or those that contain it; repeatable",
    )
    add("--games", help="only these games, separated by commas")
    add(
        "--metric",
        choices=tuple(runs.TAGS),
        help="returns of training or of evaluations (offline runs have these only)",
    )
    add("--window", type=int, help="frames over which returns are averaged (default: 1,000,000; runs below 20 M: less)")
    add("--frames", type=int, help="compare up to here; shorter runs are left out (default: as far as all groups go)")
    add("--updates", type=int, help="the same, of offline runs")
    add(
        "--normalise",
        choices=analysis.NORMALISE,
        help="by a human's score (or that of --scores), or of offline runs the data set's (default)",
    )
    add("--scores", help="CSV table (game, random, human or another in its place) to normalise by")
    add("--resamples", type=int, default=2_000, help="of the bootstrap (default: 2000)")
    add("--watch", nargs="?", type=float, const=60, metavar="SECONDS", help="repeat, by default every minute")
    args = parser.parse_args(argv)
    launch.refuse_empty(parser, args)
    for name, most in (
        ("window", 10**15),
        ("frames", 10**15),
        ("updates", 10**15),
        ("resamples", 100_000),
        ("watch", 10**6),
    ):
        if getattr(args, name) is not None and not 0 < getattr(args, name) <= most:
            parser.error(f"--{name} must be positive and at most {most:,}; got {getattr(args, name)}")
    return args


def read(args, problems: list[str]) -> list[runs.Run]:
    """Reads the runs that are asked for."""
    try:
        found = [run for path in args.logdirs for run in runs.read(path, args.metric, problems)]
    except FileNotFoundError as error:
        raise alignment.NothingYet(error) from error
    if not found:
        why = f" {problems[0]}" if problems else ""
        raise alignment.NothingYet(
            f"There are no runs in {', '.join(args.logdirs)}.{why or ' Tables in CSV are read by their own paths.'}"
        )
    if args.games:
        wanted = [task_name(game) for game in launch.listed(args.games)]
        if unknown := sorted(set(wanted) - {run.game for run in found}):
            raise alignment.NothingYet(
                f"--games: no run of {', '.join(unknown)}; there are {', '.join(sorted({run.game for run in found}))}."
            )
        found = [run for run in found if run.game in wanted]
    return found


def compare(args, output: Path) -> None:
    """Reads, computes, and replaces the results of the last comparison."""
    problems: list[str] = []
    until = {"frames": args.frames, "updates": args.updates}
    comparison = alignment.compare(read(args, problems), args.group_by, args.groups, args.window, **until)
    comparison.notes[:0] = problems
    scores = analysis.read_scores(args.scores) if args.scores else None
    result = analysis.analyse(comparison, scores, args.resamples, args.normalise)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".compare-") as directory:
        write(result, Path(directory))
        replace(output, Path(directory))
    print(f"{run.count(len(comparison.games), 'game')}: {', '.join(comparison.games)}")
    for note in comparison.notes:
        print(f"Note: {note}")
    header, *rows = report.summary(result)
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")
    logdir = args.logdirs[0] if output.parent == Path(args.logdirs[0]).resolve() else output
    page = shlex.join(["tensorboard", "--logdir", str(logdir)])
    print(f"Report: {output / 'report.html'}\nCurves: {page}  (page: custom scalars)")


def write(result: analysis.Analysis, directory: Path) -> None:
    """Writes everything to an empty folder."""
    (directory / "figures").mkdir()
    drawn = figures.draw_all(result)
    pictures = {name: figures.png(figure) for name, figure in drawn.items()}
    for name, figure in drawn.items():
        (directory / "figures" / f"{name}.png").write_bytes(pictures[name])
        (directory / "figures" / f"{name}.svg").write_text(figures.svg(figure))
    (directory / "report.html").write_text(report.page(result))
    report.write_tables(result, directory)
    events.write(result, directory, pictures)


def ours(output: Path) -> list[str]:
    """What the last comparison wrote to `output`.

    Raises:
      ConfigError: if something else is there.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return []
    try:
        names = [Path(name).name for name in json.loads((output / runs.MARKER).read_text())["comparison"]]
        return [name for name in names if name not in ("", ".", "..")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{output} exists and holds no comparison. Choose another --output.") from error


def replace(output: Path, directory: Path) -> None:
    """Moves results to `output`, in place of the last ones; what others have put there stays."""
    output.mkdir(exist_ok=True)
    last, new = ours(output), sorted(path.name for path in directory.iterdir())
    if taken := [name for name in new if name not in (*last, runs.MARKER) and (output / name).exists()]:
        raise ConfigError(f"{output} has a {taken[0]} that is of no comparison. Move it, or choose another --output.")
    mark(directory, output, {*last, *new})  # of which there is some, should this be cut off
    for name in last:
        path = output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in new:
        (directory / name).replace(output / name)
    mark(directory, output, new)


def mark(directory: Path, output: Path, names) -> None:
    """Tells, all at once, what in `output` is of the comparison."""
    (directory / runs.MARKER).write_text(json.dumps({"comparison": sorted(names)}) + "\n")
    (directory / runs.MARKER).replace(output / runs.MARKER)


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    first = Path(args.logdirs[0])
    if args.output is None and first.exists() and not first.is_dir():
        raise ConfigError(f"{first} is no folder to put results in: pass --output DIR.")
    output = (args.output or first / runs.OUTPUT).resolve()
    ours(output)
    while True:
        try:
            compare(args, output)
        except alignment.NothingYet as error:
            if args.watch is None:
                raise
            print(f"Not yet: {error}")
        if args.watch is None:
            return 0
        time.sleep(args.watch)


if __name__ == "__main__":
    launch.run(main)
