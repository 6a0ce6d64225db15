"""The code in README and docs runs, its commands exist, and its links lead somewhere."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.main import get_command

import metricbus.testing
import metricbus.torch
from metricbus._bus.default_bus import DefaultBus
from metricbus._cli.app import app
from metricbus._common.records import End, Header, Scalars, decode
from tests.helpers.limits import HANG_SECS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CONTINUES = "<!-- continues -->"  # above a block that goes on where the one before it ended


class Block(NamedTuple):
    """A code block: its first line in the page, its text, and whether it goes on with another."""

    line: int
    code: str
    continues: bool = False


def fences(page: Path, language: str) -> list[Block]:
    """The code blocks of a page in a language."""
    found = []
    before: Token | None = None
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.info.strip() == language:
            continues = before is not None and before.content.strip() == CONTINUES
            found.append(Block(token.map[0] + 2 if token.map else 0, token.content, continues))
        before = token
    return found


def stories(page: Path) -> Iterator[list[Block]]:
    """The page's Python blocks, those that continue one another together."""
    story: list[Block] = []
    for block in fences(page, "python"):
        if story and not block.continues:
            yield story
            story = []
        story.append(block)
    if story:
        yield story


def whereabouts(page: Path) -> str:
    return str(page.relative_to(ROOT))


STORIES = [
    pytest.param(page, story, id=f"{whereabouts(page)}:{story[0].line}")
    for page in PAGES
    if page.parent.name != "coming-from"  # test_coming_from.py has what these need
    for story in stories(page)
]


@pytest.fixture
def process_wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process-wide bus to whom nobody has spoken."""
    fresh = DefaultBus()
    monkeypatch.setattr("metricbus.bus", fresh)  # first: it comes from the other when first asked
    monkeypatch.setattr("metricbus._bus.default_bus.bus", fresh)
    yield
    fresh.close()


@pytest.mark.parametrize(("page", "story"), STORIES)
def test_a_code_block_runs(
    page: Path, story: list[Block], tmp_path: Path, process_wide: None
) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    for block in story:
        padded = "\n" * (block.line - 1) + block.code  # errors show the page's own line
        exec(compile(padded, str(page), "exec"), names)
    tests = [one for name, one in names.items() if name.startswith("test_") and callable(one)]
    for test in tests:
        test(*[tmp_path] * len(inspect.signature(test).parameters))


def test_there_are_code_blocks() -> None:
    assert len(STORIES) >= 40


def test_the_lines_on_the_journals_page_are_records() -> None:
    (lines,) = fences(DOCS / "journal.md", "json")
    kinds = [type(decode(line.encode())) for line in lines.code.splitlines()]
    assert kinds == [Header, Scalars, Scalars, End]


def test_every_relative_link_leads_somewhere() -> None:
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text()):
            for child in token.children or []:
                target = str(child.attrGet("href") or child.attrGet("src") or "").partition("#")[0]
                if target and "://" not in target:
                    assert (page.parent / target).exists(), (page, target)


COMMANDS = [
    pytest.param(line.split("  #")[0], id=f"{whereabouts(page)}: {line[:60]}")
    for page in PAGES
    for block in fences(page, "sh")
    for line in block.code.splitlines()
    if re.match(r"(\w+=\S+ )*(metricbus|make) ", line)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_has_a_command_and_options_that_there_are(line: str) -> None:
    words = shlex.split(line.partition("|")[0])
    while "=" in words[0]:
        words.pop(0)
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words[1:] if "=" not in word} <= targets
        return
    commands = get_command(app).commands  # type: ignore[attr-defined]
    command = commands[words[1]]
    context = command.make_context(words[1], words[2:], resilient_parsing=False)
    context.close()


def test_there_are_command_lines() -> None:
    assert len(COMMANDS) >= 30


def test_the_page_of_commands_is_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, DOCS / "made" / "commands.py"],
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_SECS,
    )
    assert (DOCS / "commands.md").read_text() == made.stdout, "make pages"


def test_every_command_is_told_on_the_command_lines_page() -> None:
    text = (DOCS / "cli.md").read_text() + (DOCS / "guide.md").read_text()
    told = [name for name in get_command(app).commands if f"metricbus {name}" in text]  # type: ignore[attr-defined]
    assert set(told) >= {"ls", "show", "compare", "tail", "plot", "import", "deliver"}


def test_the_api_pages_have_the_public_names_and_no_others() -> None:
    text = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    shown = re.findall(r"^::: (metricbus[\w.]*)$", text, re.MULTILINE)
    whole = {"metricbus.testing": metricbus.testing.__all__, "metricbus.sinks.base": []}
    public = {f"metricbus.{name}" for name in metricbus.__all__}
    hooks = {f"metricbus.torch.{name}" for name in metricbus.torch.__all__}
    again = {name for name in hooks if name.replace(".torch", "") in public}  # under both names
    below = {"metricbus._bus.scope.Scope", *whole}  # what methods give; modules that stand as one
    inside = {"metricbus.Sink"}  # in the page of metricbus.sinks.base
    assert sorted(shown) == sorted((public | hooks | below) - again - inside)
    for names in whole.values():
        assert all(name in text for name in names)


def test_every_page_is_in_the_sites_nav() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in sorted(DOCS.rglob("*.md")):
        assert re.search(rf"[ :]{re.escape(str(page.relative_to(DOCS)))}$", nav, re.MULTILINE), page
