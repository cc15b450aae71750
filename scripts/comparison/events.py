"""A comparison as TensorBoard runs: one run per group with the same tags, margin charts, and pictures.

TensorBoard cannot average runs, but its custom-scalar plugin draws one tag between two others as a band.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.image import metadata as image
from tensorboard.plugins.scalar import summary_v2 as scalar
from tensorboard.plugins.text import summary_v2 as text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from comparison import figures
from comparison.analysis import Analysis

ENDS = ("value", "lower", "upper")


def write(analysis: Analysis, directory: Path, pictures: dict[str, bytes]) -> None:
    """Writes one run per group below `directory`, and the layout, the pictures and the notes to `directory` itself.

    Args:
      analysis: the numbers.
      directory: where the runs go.
      pictures: name -> PNG.
    """
    frames = analysis.comparison.frames
    series, runs = {}, folders([group.name for group in analysis.comparison.groups])
    for group in analysis.comparison.groups:
        tags = {f"{key}/": band for key, band in analysis.curves.get(group.name, {}).items()}
        tags |= {f"game/{game}/": band for game, band in analysis.per_game[group.name].items()}
        series |= dict.fromkeys(tags)
        writer = EventFileWriter(str(directory / runs[group.name]), max_queue_size=1000)  # 10 take twice as long
        for tag, band in tags.items():
            for end, values in zip(ENDS, band, strict=True):
                for frame, value in zip(frames, values, strict=True):
                    _add(writer, scalar.scalar_pb(tag + end, np.float32(value)), int(frame))
        writer.close()

    writer = EventFileWriter(str(directory))
    _add(writer, _strings(custom_scalar.CONFIG_SUMMARY_TAG, [_layout(series)], custom_scalar.create_summary_metadata()))
    for name, png in pictures.items():
        width, height = np.frombuffer(png[16:24], ">u4")  # of the PNG's header
        metadata = image.create_summary_metadata(display_name=name, description="")
        _add(writer, _strings(f"figures/{name}", [str(width).encode(), str(height).encode(), png], metadata))
    notes = "\n".join(f"* {note}" for note in analysis.comparison.notes) or "No notes."
    _add(writer, text.text_pb("notes", notes))
    writer.close()


def folders(names: list[str]) -> dict[str, str]:
    """Names of groups as names of folders, no two alike; TensorBoard's runs must not hold parentheses."""
    result: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9=.,+-]+", "_", name).strip("_.")[:100] or "group"
        while plain.lower() in {"figures", *(other.lower() for other in result.values())}:
            plain += "+"
        result[name] = plain
    return result


def _layout(series) -> bytes:
    """One margin chart per tag, which shows every run that has it. TensorBoard puts the last chart first."""
    categories = {"Aggregates": [], "Games": []}
    for tag in series:
        content = layout_pb2.MarginChartContent(
            series=[layout_pb2.MarginChartContent.Series(**{end: tag + end for end in ENDS})]
        )
        key = tag.strip("/")
        title = figures.TITLES.get(key, key.removeprefix("game/"))
        chart = layout_pb2.Chart(title=title, margin=content)
        categories["Games" if tag.startswith("game/") else "Aggregates"].append(chart)
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(title=title, chart=charts[::-1]) for title, charts in categories.items() if charts
        ]
    )
    return layout.SerializeToString()


def _strings(tag: str, values: list[bytes], metadata) -> Summary:
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=len(values))] if len(values) > 1 else [])
    tensor = TensorProto(dtype=DT_STRING, string_val=values, tensor_shape=shape)
    return Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)])


def _add(writer, summary, step: int = 0) -> None:
    writer.add_event(Event(summary=summary, step=step, wall_time=time.time()))
