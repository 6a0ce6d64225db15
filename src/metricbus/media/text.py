"""`Text`: some Markdown."""

from __future__ import annotations

from functools import partial

from metricbus._common.media_base import EncodeContext, EncodeJob, MediaValue, check_text
from metricbus._common.media_records import TextRecord

_START = 80


class Text(MediaValue):
    """A text; backends that can show Markdown do."""

    def __init__(self, markdown: str) -> None:
        self._markdown = markdown

    def _capture(self, name: str) -> EncodeJob:
        """Checks the text."""
        text = check_text(name, "Text(…)", self._markdown)
        return EncodeJob(len(text), partial(_encode, text))


def _encode(text: str, work: EncodeContext) -> TextRecord:
    file = work.save("texts", ".md", text.encode())
    start = " ".join(text[: 2 * _START].split())
    short = start if len(text) <= _START else start[:_START].rstrip() + "…"
    return work.record(TextRecord, file=file, length=len(text), start=short)
