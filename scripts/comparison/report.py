"""A comparison as files: one page, figures, tables, and arrays for other tools."""

from __future__ import annotations

import csv
import datetime
from html import escape
from pathlib import Path

import numpy as np

from comparison import figures
from comparison.alignment import TABLE_WINDOWS
from comparison.analysis import Analysis
from comparison.run import METRICS, count
from comparison.tables import RETURN, WEIGHT

BAND = ("value", "lower", "upper")

HEADINGS = {
    "iqm": "Interquartile mean",
    "aggregates": "Aggregates of the last windows",
    "profiles": "Performance profiles",
    "improvement": "Probability of improvement",
    "per_game": "Every game",
}
CSS = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --soft: #59636e; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --text: #e6e9ec; --soft: #9aa4ae; --line: #353c44; } }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
svg { width: 100%; height: auto; font-family: system-ui, sans-serif; }
.scroll { overflow-x: auto; } .soft { color: var(--soft); }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td:first-child { overflow-wrap: anywhere; min-width: 9rem; }
td:not(:first-child) { font-variant-numeric: tabular-nums; white-space: nowrap; }
.legend { position: sticky; top: 0; background: var(--page); border-bottom: 1px solid var(--line); padding: .5rem 0;
  display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: .9rem; max-height: 25vh; overflow-y: auto; }
.legend svg { width: 2.2rem; height: .8rem; vertical-align: middle; margin-right: .4rem; }
code { font-size: .85rem; overflow-wrap: anywhere; }
"""
DASHES = {"-": "", "--": "6 3", ":": "2 2", "-.": "6 2 2 2"}


def number(band) -> str:
    """A value with its interval."""
    value, lower, upper = band
    shown = lambda x: f"{x:#.2g}" if 1e-9 < abs(x) < 0.1 else f"{x:.2f}" if abs(x) < 100 else f"{x:,.0f}"
    return f"{shown(value)} [{shown(lower)}, {shown(upper)}]"


def summary(analysis: Analysis) -> list[list[str]]:
    """The table of the last windows, its header first."""
    keys = next(iter(analysis.table.values()), {})
    rows = [["group", "games", "runs", *(figures.TITLES[key] for key in keys)]]
    for group in analysis.comparison.groups:
        table = analysis.table.get(group.name)
        cells = [number(table[key]) for key in keys]
        runs = len(analysis.last[group.name][0]) if table else len(group.runs)
        rows.append([group.name, str(len(analysis.games or analysis.comparison.games)), str(runs), *cells])
    return rows


def page(analysis: Analysis) -> str:
    """Renders the report: one file that needs no other."""
    c = analysis.comparison
    drawn = figures.draw_all(analysis, legend=False)
    title = escape(" vs ".join(group.name for group in c.groups)) if len(c.groups) < 4 else f"{len(c.groups)} groups"
    about = (
        f"Mean returns of {METRICS[c.metric]} on {count(len(c.games), 'game')} up to {c.frames[-1]:,} {c.unit}, in "
        f"windows of {c.window:,}. Bands and brackets are 95 % intervals of a bootstrap over the runs of each game; "
        f"tables hold the mean {analysis.unit} of the last {count(min(TABLE_WINDOWS, len(c.frames)), 'window')}. "
        f"Made {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC."
    )
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{escape(about)}</p>',
        _legend(analysis),
        _table(summary(analysis)),
    ]
    if c.notes:
        parts.append("<h2>Read this first</h2><ul>" + "".join(f"<li>{escape(n)}</li>" for n in c.notes) + "</ul>")
    for name, heading in HEADINGS.items():
        if name in drawn:
            parts.append(f"<h2>{heading}</h2>{figures.svg(drawn[name], inline=True)}")
    if analysis.improvement and "improvement" not in drawn:
        parts.append(
            "<p>There are too many pairs of groups for a picture of improvements: improvement.csv has all.</p>"
        )
    keys = sorted({key for group in c.groups for key in group.settings})
    settings = [["group", *keys], *([group.name, *(group.settings.get(key, "") for key in keys)] for group in c.groups)]
    if keys:
        parts.append(
            "<h2>What differs between the groups</h2>" + _table([list(row) for row in zip(*settings, strict=True)])
        )
    runs = "".join(f"<li><code>{escape(run.source)}</code></li>" for group in c.groups for run in group.runs)
    parts.append(
        f"<h2>Runs</h2><details><summary>{count(runs.count('<li>'), 'run')}</summary><ul>{runs}</ul></details>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _legend(analysis: Analysis) -> str:
    items = []
    for name, line in figures.style(analysis).items():
        stroke = f'stroke="{line["color"]}" stroke-width="3" stroke-dasharray="{DASHES[line["linestyle"]]}"'
        items.append(f'<span><svg viewBox="0 0 36 12"><path d="M0 6H36" {stroke}/></svg>{escape(name)}</span>')
    return f'<div class="legend">{"".join(items)}</div>'


def _table(rows: list[list[str]]) -> str:
    header, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def write_tables(analysis: Analysis, directory: Path) -> None:
    """Writes the aggregates as CSV, and the scores as arrays in rliable's shape.

    `table.csv` has a row per group and aggregate of the last windows, `improvement.csv` one per pair of groups, with
    the probability that x beats y, `aggregates.csv` one per group, aggregate and window, `runs.csv` one per run and
    window, raw, from which `scripts/compare.py` draws everything again. `scores.npz` holds for each group an array
    [runs, games] of the last windows, NaN where a run is missing.
    """
    c = analysis.comparison

    def write(name, header, rows):
        with (directory / name).open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    bands = [(name, key, band) for name, table in analysis.table.items() for key, band in table.items()]
    write("table.csv", ["group", "aggregate", *BAND], ([name, key, *band] for name, key, band in bands))
    header = ["x", "y", "probability", *BAND[1:]]
    write("improvement.csv", header, ([*pair, *band] for pair, band in analysis.improvement.items()))
    curves = [(name, key, band) for name, curves in analysis.curves.items() for key, band in curves.items()]
    rows = ([name, key, int(f), *at] for name, key, band in curves for f, at in zip(c.frames, band.T, strict=True))
    write("aggregates.csv", ["group", "aggregate", c.unit, *BAND], rows)
    offline = ["behaviour_return"] if c.unit == "updates" else []
    write("runs.csv", ["group", "game", "seed", c.unit, RETURN[c.metric], WEIGHT, *offline], _runs(c))
    arrays = {}
    for group in c.groups if analysis.games else ():
        scores, games = analysis.last[group.name]
        of_game = [scores[games == game] for game in analysis.games]
        array = np.full((max(map(len, of_game)), len(analysis.games)), np.nan)
        for column, values in zip(array.T, of_game, strict=True):
            column[: len(values)] = values
        name = group.name.replace("/", "_").replace("\\", "_")  # a file of the archive
        while name in ("file", "games", "allow_pickle", *arrays):
            name += "'"
        arrays[name] = array
    np.savez(directory / "scores.npz", **arrays, games=np.array(analysis.games))


def _runs(comparison):
    """Rows of runs.csv: returns of each run in each window, and of how many episodes, or evaluations, they are."""
    windows = comparison.frames // comparison.window - 1
    for group in comparison.groups:
        for run, scores in zip(group.runs, group.scores, strict=True):
            counts = run.counts(comparison.window, windows[-1] + 1)[windows].astype(int)
            more = [run.behaviour_return] if comparison.unit == "updates" else []
            for end, score, number in zip(comparison.frames, scores, counts, strict=True):
                yield [group.name, run.game, run.seed, int(end), f"{score:.6g}", number, *more]
