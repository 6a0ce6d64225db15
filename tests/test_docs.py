"""The code in README and docs runs, and the journal's page shows real lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from metricbus.records import End, Header, Scalars, decode

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fences(page: Path, language: str) -> list[tuple[int, str]]:
    """The code blocks of a page: their first line and text."""
    tokens = MarkdownIt().parse(page.read_text())
    return [
        (token.map[0] + 2 if token.map else 0, token.content)
        for token in tokens
        if token.type == "fence" and token.info.strip() == language
    ]


BLOCKS = [
    pytest.param(page, line, code, id=f"{page.name}:{line}")
    for page in PAGES
    for line, code in fences(page, "python")
]


@pytest.mark.parametrize(("page", "line", "code"), BLOCKS)
def test_a_code_block_runs(page: Path, line: int, code: str) -> None:
    padded = "\n" * (line - 1) + code  # errors show the page's own line
    exec(compile(padded, str(page), "exec"), {"__name__": "__docs__"})


def test_there_are_code_blocks() -> None:
    assert len(BLOCKS) >= 8


def test_the_lines_on_the_journals_page_are_records() -> None:
    ((_, lines),) = fences(ROOT / "docs" / "journal.md", "json")
    kinds = [type(decode(line.encode())) for line in lines.splitlines()]
    assert kinds == [Header, Scalars, Scalars, End]


def test_every_relative_link_leads_somewhere() -> None:
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text()):
            for child in token.children or []:
                target = str(child.attrGet("href") or "")
                if target and "://" not in target:
                    assert (page.parent / target.partition("#")[0]).exists(), (page, target)
