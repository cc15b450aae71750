"""The figures of a comparison, by matplotlib."""

from __future__ import annotations

import io
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from comparison.analysis import Analysis

# Okabe & Ito's colours, told apart with any colour vision (https://jfly.uni-koeln.de/color/); then other line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
STYLES, MARKERS = ("-", "--", ":", "-."), "osD^v"
CHARACTER = 0.075  # inches that one takes in the names of rows
LARGEST_PAIRS = 45  # pairs of groups that the figure of improvements has room for
INK = "#121416"  # text and axes; in pages it becomes the colour of their text
TITLES = {
    "iqm": "interquartile mean",
    "mean": "mean",
    "median": "median",
    "optimality_gap": "optimality gap (lower is better)",
}
INKED = (
    "text.color",
    "axes.labelcolor",
    "axes.edgecolor",
    "axes.titlecolor",
    "xtick.color",
    "ytick.color",
    "grid.color",
)
plt.rcParams.update(dict.fromkeys(INKED, INK))
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.2})
plt.rcParams.update(
    {"text.parse_math": False, "font.sans-serif": ["DejaVu Sans"], "svg.fonttype": "none", "legend.frameon": False}
)


def style(analysis: Analysis) -> dict[str, dict]:
    """Colour and line of each group."""
    names = [group.name for group in analysis.comparison.groups]
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}
        for i, name in enumerate(names)
    }


def draw_all(analysis: Analysis, legend: bool = True) -> dict[str, Figure]:
    """Draws every figure for which there are numbers: name -> figure."""
    figures = {"per_game": per_game}
    if analysis.curves:
        figures = {"iqm": iqm, "aggregates": aggregates, "profiles": profiles} | figures
    if 0 < len(analysis.improvement) <= LARGEST_PAIRS:
        figures["improvement"] = improvement
    return {name: function(analysis, legend) for name, function in figures.items()}


def png(figure: Figure) -> bytes:
    """Renders to PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def svg(figure: Figure, inline: bool = False) -> str:
    """Renders to SVG; for a page, `inline`, transparent and in the colour of its text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=inline, metadata={"Date": None})
    text = buffer.getvalue()
    if inline:
        text = text[text.index("<svg") :].replace(INK, "currentColor")
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)  # the width of the page decides
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return text


def labels(names: list[str], length: int = 34, most: int = 48) -> dict[str, str]:
    """Names that fit: if one is too long, without the words that all have; beyond `most` cut, and none alike."""
    if max(map(len, names)) <= length:
        return {name: name for name in names}
    words = {name: re.split(r"( |(?<=[A-Za-z])-(?=[A-Za-z]))", name) for name in names}  # and what is between them
    dropped: set[str] = set()
    for word in words[names[0]][::2]:
        if all(word in of[::2] and {*of[::2]} - {*dropped, word} for of in words.values()):  # something is left of each
            dropped.add(word)
    result: dict[str, str] = {}
    for number, (name, of) in enumerate(words.items(), 1):
        kept = [between + word for between, word in zip(["", *of[1::2]], of[::2], strict=True) if word not in dropped]
        text = "".join(kept).lstrip(" -")
        half = most // 2
        text = f"{text[:half]}…{text[-half + 1 :]}" if len(text) > most else text
        result[name] = text if text not in result.values() else f"{text[: most - 6]}… ({number})"
    return result


def _figure(analysis, legend, columns=1, rows=1, size=(7.2, 3.8), **options):
    texts = list(labels(list(style(analysis)), 76, 76).values())
    beside = 3 if max(map(len, texts)) < 28 else 2 if max(map(len, texts)) < 36 else 1  # entries of the legend
    extra = 0.28 * -(-len(texts) // beside) if legend else 0
    figure, axes = plt.subplots(rows, columns, figsize=(size[0], size[1] + extra), squeeze=False, **options)
    figure.set_layout_engine("constrained")
    plt.close(figure)  # owned by the caller, not by pyplot
    if legend:
        handles = [plt.Line2D([], [], linewidth=2, **line) for line in style(analysis).values()]
        figure.legend(handles, texts, loc="outside upper center", ncols=beside, fontsize=9)
    return figure, axes.ravel()


def scale(last: float, unit: str = "frames") -> tuple[float, str]:
    """By what to divide frames, of which `last` are the most, and the unit they are in then."""
    return (1e6, f"million {unit}") if last >= 2e6 else (1e3, f"thousand {unit}")


def _curve(axes, x, band, line, steps: bool = False) -> None:
    axes.plot(x, band[0], linewidth=1.8, drawstyle="steps-post" if steps else "default", **line)
    axes.fill_between(x, band[1], band[2], color=line["color"], alpha=0.18, linewidth=0, step="post" if steps else None)


def _curves(axes, analysis, bands) -> str:
    """Draws a band of each group against frames, or side by side where there is one window; returns what x is."""
    per, unit = scale(analysis.comparison.frames[-1], analysis.comparison.unit)
    frames = np.asarray(analysis.comparison.frames) / per
    for i, (name, line) in enumerate(style(analysis).items()):
        if len(frames) > 1:
            _curve(axes, frames, bands[name], line)
        else:
            value, lower, upper = bands[name][:, 0]
            axes.vlines(i, lower, upper, color=line["color"], linewidth=5, alpha=0.35)
            axes.plot([i], [value], "o", color=line["color"], markersize=5)
    if len(frames) > 1:
        axes.margins(x=0)
        return unit
    axes.set_xticks([])
    axes.set_xlim(-0.5, len(bands) - 0.5)
    return f"at {frames[0]:g} {unit}"


def iqm(analysis: Analysis, legend: bool) -> Figure:
    """The interquartile mean against frames."""
    figure, (axes,) = _figure(analysis, legend)
    unit = _curves(axes, analysis, {name: curves["iqm"] for name, curves in analysis.curves.items()})
    axes.set(xlabel=unit, ylabel=f"IQM of {analysis.unit}")
    return figure


def aggregates(analysis: Analysis, legend: bool) -> Figure:
    """Every aggregate of the last windows, as a dot with its interval; rows are named, so there is no legend."""
    del legend
    rows, keys, short = len(analysis.table), next(iter(analysis.table.values())), labels(list(style(analysis)))
    width = 4.7 + CHARACTER * max(map(len, short.values()))
    figure, panels = _figure(analysis, False, len(keys), size=(max(7.2, width), 1.1 + 0.28 * rows), sharey=True)
    for axes, key in zip(panels, keys, strict=True):
        for i, (name, line) in enumerate(style(analysis).items()):
            value, lower, upper = analysis.table[name][key]
            axes.plot([lower, upper], [-i, -i], color=line["color"], linewidth=5, alpha=0.35, solid_capstyle="butt")
            axes.plot([value], [-i], MARKERS[i // len(COLOURS) % len(MARKERS)], color=line["color"], markersize=5)
        axes.set_title(TITLES[key].replace(" (", "\n("), fontsize=9)
        axes.set(ylim=(0.6 - rows, 0.4))
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_yticks(-np.arange(rows), short.values(), fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
    return figure


def profiles(analysis: Analysis, legend: bool) -> Figure:
    """The fraction of runs above each score."""
    figure, (axes,) = _figure(analysis, legend)
    for name, line in style(analysis).items():
        _curve(axes, analysis.thresholds, analysis.profiles[name], line, steps=True)
    axes.set(xlabel=analysis.unit, ylabel="fraction of runs above it", ylim=(0, 1.02))
    axes.margins(x=0)
    return figure


def improvement(analysis: Analysis, legend: bool) -> Figure:
    """How probably a run of one group beats one of another, one row per pair; these are named: no legend."""
    del legend
    pairs, short = list(analysis.improvement), labels(list(style(analysis)))
    width = 3 + 2 * CHARACTER * max(map(len, short.values()))
    figure, (axes,) = _figure(analysis, False, size=(max(7.2, width), 0.9 + 0.26 * len(pairs)))
    for i, (x, y) in enumerate(pairs):
        value, lower, upper = analysis.improvement[x, y]
        axes.plot([lower, upper], [-i, -i], color=COLOURS[0], linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot([value], [-i], "o", color=COLOURS[0], markersize=5)
        axes.annotate(f"> {short[y]}", (1.04, -i), fontsize=8, va="center", annotation_clip=False)
    axes.axvline(0.5, color=INK, linewidth=0.8)
    axes.set_yticks(-np.arange(len(pairs)), [short[x] for x, _ in pairs], fontsize=8)
    axes.set(xlim=(-0.02, 1.02), ylim=(0.5 - len(pairs), 0.5), xlabel="probability of improvement")
    return figure


def per_game(analysis: Analysis, legend: bool) -> Figure:
    """Mean return against frames on each game."""
    games = analysis.comparison.games
    rows = -(-len(games) // 4)
    columns = -(-len(games) // rows)
    figure, panels = _figure(analysis, legend, columns, rows, size=(7.2 if columns > 1 else 4.8, 0.5 + 1.55 * rows))
    for axes, (game, title) in zip(panels, labels(games, 24, 24).items(), strict=False):
        unit = _curves(axes, analysis, {name: of[game] for name, of in analysis.per_game.items()})
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
    for axes in panels[len(games) :]:
        axes.set_visible(False)
    figure.supxlabel(unit, fontsize=9)
    figure.supylabel("return", fontsize=9)
    return figure
