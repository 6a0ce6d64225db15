"""The `Text` medium."""

from __future__ import annotations

from functools import partial

from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue, check_text
from metricbus._common.media_records import TextRecord

_START = 80


class Text(MediaValue):
    """A text, shown as Markdown by backends that support it.

    `log()` raises `TypeError`, naming the metric, if `markdown` is not a string, and `ValueError`
    if it cannot be encoded as UTF-8.
    """

    def __init__(self, markdown: str) -> None:
        self._markdown = markdown

    def _capture(self, name: str) -> EncodeJob:
        text = check_text(name, "the argument of Text()", self._markdown)
        return EncodeJob(len(text), partial(_encode, text))


def _encode(text: str, context: EncodeContext) -> TextRecord:
    file = context.save("texts", ".md", text.encode())
    start = " ".join(text[: 2 * _START].split())
    short = start if len(text) <= _START else start[:_START].rstrip() + "…"
    return context.record(TextRecord, file=file, length=len(text), start=short)
