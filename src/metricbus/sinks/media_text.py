"""What file and line sinks say of any medium."""

from __future__ import annotations

from metricbus._common.media_records import (
    AudioRecord,
    ImageRecord,
    MediumRecord,
    VideoRecord,
)


def kind_of(record: MediumRecord) -> str:
    """The record's kind in a word."""
    return str(type(record).__struct_config__.tag)


def caption_of(record: MediumRecord) -> str:
    """What was written below it; empty for nothing, and for kinds without."""
    return record.caption if isinstance(record, ImageRecord | AudioRecord | VideoRecord) else ""


def plain_cell(cell: bool | int | float | None) -> str:
    """A table's cell that is no text: numbers so that they read back exactly."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return "" if cell is None else repr(cell)
