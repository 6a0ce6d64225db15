"""Media records for the tests of sinks, like those that are read from a journal."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from typing import Any

from PIL import Image

from metricbus import ScalarRow
from metricbus._common.media_records import (
    AudioRecord,
    Cell,
    ChartRecord,
    FileRef,
    HistogramRecord,
    ImageRecord,
    TableRecord,
    TextRecord,
    VideoRecord,
    encode_rows,
)
from metricbus._journal.media_files import MediaWriter

PIXELS = bytes(range(12))  # 2 x 2, three channels


def log_fields(step: int, name: str = "x") -> dict[str, Any]:
    return {"name": name, "step": step, "epoch": 0, "time": step * 10**9}


def row(step: int, **values: float) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=step * 10**9, values=values)


def png(pixels: bytes = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (2, 2), pixels).save(file, "PNG")
    return file.getvalue()


def image(writer: MediaWriter, step: int, name: str = "x", **extra: Any) -> ImageRecord:
    file = writer.save("image", name, step, ".png", png())
    return ImageRecord(**log_fields(step, name), file=file, width=2, height=2, channels=3, **extra)


def text(writer: MediaWriter, step: int, content: str, name: str = "x") -> TextRecord:
    file = writer.save("text", name, step, ".md", content.encode())
    return TextRecord(**log_fields(step, name), file=file, length=len(content), start=content[:80])


def table(
    writer: MediaWriter,
    rows: Sequence[Sequence[Cell]],
    columns: list[str],
    *,
    first_row: int = 0,
    id: str = "t",
) -> TableRecord:
    file = writer.save("table", "x", 0, ".jsonl", encode_rows(rows))
    fields: dict[str, Any] = {"first_row": first_row, "rows": len(rows), "columns": columns}
    return TableRecord(**log_fields(0), table=id, part=0, file=file, **fields)


def wav_of(frames: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((2, 2, 8000, 0, "NONE", ""))
        out.writeframes(frames)
    return file.getvalue()


def video(ref: FileRef, format: str) -> VideoRecord:
    return VideoRecord(**log_fields(0), file=ref, format=format, fps=4, frames=2, width=2, height=2)


def audio(writer: MediaWriter, step: int, frames: bytes, **extra: Any) -> AudioRecord:
    file = writer.save("audio", "x", step, ".wav", wav_of(frames))
    fields: dict[str, Any] = {
        "format": "wav",
        "sample_rate": 8000,
        "channels": 2,
        "frames": len(frames) // 4,
    }
    return AudioRecord(**log_fields(step), **fields, file=file, **extra)


def chart(writer: MediaWriter, rows: Sequence[Sequence[Cell]]) -> ChartRecord:
    return ChartRecord(
        **log_fields(0),
        chart="line",
        x_column="a",
        y_columns=["b"],
        title="t",
        columns=["a", "b"],
        rows=len(rows),
        data=writer.save("chart", "x", 0, ".jsonl", encode_rows(rows)),
        picture=writer.save("chart", "x", 0, ".png", png()),
        width=2,
        height=2,
    )


HISTOGRAM = HistogramRecord(
    **log_fields(3),
    counts=[0, 5, 2**40, 0],
    edges=[-0.1, 0.1, 0.30000000000000004, 1e300, 2e300],
    count=2**40 + 5,
    minimum=0.2,
    maximum=1e299,
    mean=0.5,
    std=0.1,
    sum=1.5,
    sum_squares=2.5,
)
