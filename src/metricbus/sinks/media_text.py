"""Text forms of names, media and table cells that several sinks and the command line share."""

from __future__ import annotations

from metricbus._common.media_records import AudioRecord, ImageRecord, MediumRecord, VideoRecord


def kind_of(record: MediumRecord) -> str:
    """Return the kind of a medium, such as `image`."""
    return str(type(record).__struct_config__.tag)


def caption_of(record: MediumRecord) -> str:
    """Return the caption of a medium; empty if it has none."""
    return record.caption if isinstance(record, ImageRecord | AudioRecord | VideoRecord) else ""


def cell_text(cell: bool | int | float | None) -> str:
    """Return a table cell that is not text as text; numbers read back exactly."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return "" if cell is None else repr(cell)


def printable(value: object) -> str:
    """Return `value` as text on one line, with non-printable characters escaped as in Python."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def quote_name(name: str) -> str:
    """Return a printable name, in double quotes if it needed escaping or has a blank or `=`."""
    if name.isprintable() and not (" " in name or "=" in name):
        return name
    return f'"{printable(name)}"'
