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
import shutil
import sys
import time
from pathlib import Path

from agents.config_checks import ConfigError
from comparison import analysis, events, figures, groups, report, runs

MARKER = "comparison.json"  # tells a folder that may be replaced


def parse_args(argv=None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("logdirs", nargs="+", metavar="LOGDIR", help="run directories, their parents, or Dopamine's baselines")
    add("--output", type=Path, help=f"folder for the results (default: {runs.OUTPUT} in the first LOGDIR)")
    add("--group_by", action="append", metavar="SETTING", help="group by this setting only; may be repeated")
    add("--groups", action="append", metavar="TEXT", help="only groups whose name contains this; may be repeated")
    add("--games", help="only these games, separated by commas")
    add("--metric", choices=tuple(runs.TAGS), default="train", help="returns of training or of evaluations")
    add("--window", type=int, help="frames over which returns are averaged (default: 1,000,000, less for short runs)")
    add("--frames", type=int, help="compare up to here; shorter runs are left out (default: the finished runs' length)")
    add("--scores", help="CSV table (game, random, human) to normalise by instead of the shipped one")
    add("--resamples", type=int, default=2_000, help="of the bootstrap (default: 2000)")
    add("--watch", nargs="?", type=float, const=60, metavar="SECONDS", help="repeat, by default every minute")
    args = parser.parse_args(argv)
    for name in ("window", "frames", "resamples", "watch"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            parser.error(f"--{name} must be positive; got {getattr(args, name)}")
    return args


def read(args, say) -> list[runs.Run]:
    """Reads the runs that are asked for."""
    problems: list[str] = []
    found = [run for path in args.logdirs for run in runs.read(path, args.metric, problems)]
    for problem in problems:
        say(problem)
    if not found:
        raise ConfigError(f"There are no runs in {', '.join(args.logdirs)}.")
    if args.games:
        wanted = args.games.split(",")
        if unknown := sorted(set(wanted) - {run.game for run in found}):
            raise ConfigError(
                f"--games: no run of {', '.join(unknown)}; there are {sorted({run.game for run in found})}."
            )
        found = [run for run in found if run.game in wanted]
    return found


def compare(args, output: Path) -> None:
    """Reads, computes, and replaces the results of the last comparison."""
    say = lambda note: print(f"Note: {note}")
    found = read(args, say)
    comparison = groups.compare(found, args.group_by, args.groups, args.window, args.frames, say)
    print(f"{report.count(len(comparison.games), 'game')}: {', '.join(comparison.games)}")
    scores = analysis.read_scores(args.scores) if args.scores else None
    result = analysis.analyse(comparison, scores, args.resamples, say)

    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "figures").mkdir(parents=True)
    drawn = figures.draw_all(result)
    pictures = {name: figures.png(figure) for name, figure in drawn.items()}
    for name, figure in drawn.items():
        (partial / "figures" / f"{name}.png").write_bytes(pictures[name])
        (partial / "figures" / f"{name}.svg").write_text(figures.svg(figure))
    (partial / "report.html").write_text(report.page(result))
    report.write_tables(result, partial)
    events.write(result, partial, pictures)
    (partial / MARKER).write_text(json.dumps({"groups": [group.name for group in comparison.groups]}) + "\n")
    shutil.rmtree(output, ignore_errors=True)
    partial.replace(output)
    for row in report.summary(result):
        print("| " + " | ".join(row) + " |")
    print(f"Report: {output / 'report.html'}\nCurves: tensorboard --logdir {args.logdirs[0]}  (page: custom scalars)")


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    args = parse_args(argv)
    if args.output is None and not Path(args.logdirs[0]).is_dir():
        raise ConfigError(f"{args.logdirs[0]} is no folder to put results in: pass --output DIR.")
    output = args.output or Path(args.logdirs[0], runs.OUTPUT)
    if output.exists() and not (output / MARKER).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and holds no comparison. Choose another --output.")
    while True:
        try:
            compare(args, output)
        except (ConfigError, ValueError, OSError) as error:
            if args.watch is None:
                raise
            print(f"Not yet: {error}")  # a run may be half-written, or have no return
        if args.watch is None:
            return 0
        time.sleep(args.watch)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
