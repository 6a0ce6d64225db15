"""The README and docs: code blocks run, commands exist, and links have a target."""

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
from metricbus._common.records import End, Header, ScalarRow, decode
from tests.helpers.limits import HANG_SECS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
CONTINUES = "<!-- continues -->"  # placed above a block that continues the previous one


class Block(NamedTuple):
    """A code block: its first line number, its text, and whether it continues the previous one."""

    line: int
    code: str
    continues: bool = False


def fences(page: Path, language: str) -> list[Block]:
    """Return the code blocks of a page in a language."""
    blocks = []
    previous: Token | None = None
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence" and token.info.strip() == language:
            continues = previous is not None and previous.content.strip() == CONTINUES
            blocks.append(Block(token.map[0] + 2 if token.map else 0, token.content, continues))
        previous = token
    return blocks


def scripts(page: Path) -> Iterator[list[Block]]:
    """Yield the Python blocks of a page, each together with the blocks that continue it."""
    script: list[Block] = []
    for block in fences(page, "python"):
        if script and not block.continues:
            yield script
            script = []
        script.append(block)
    if script:
        yield script


def relative_path(page: Path) -> str:
    return str(page.relative_to(ROOT))


SCRIPTS = [
    pytest.param(page, script, id=f"{relative_path(page)}:{script[0].line}")
    for page in PAGES
    if page.parent.name != "coming-from"  # these are run by test_coming_from.py
    for script in scripts(page)
]


@pytest.fixture
def default_bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process-wide bus that has not been configured yet."""
    bus = DefaultBus()
    # The order matters: the first access to `metricbus.bus` loads it from `default_bus`.
    monkeypatch.setattr("metricbus.bus", bus)
    monkeypatch.setattr("metricbus._bus.default_bus.bus", bus)
    yield
    bus.close()


@pytest.mark.parametrize(("page", "script"), SCRIPTS)
def test_a_code_block_runs(
    page: Path, script: list[Block], tmp_path: Path, default_bus: None
) -> None:
    names: dict[str, Any] = {"__name__": "__docs__"}
    for block in script:
        padded = "\n" * (block.line - 1) + block.code  # errors show the line number of the page
        exec(compile(padded, str(page), "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_") and callable(value)]
    for test in tests:
        test(*[tmp_path] * len(inspect.signature(test).parameters))


def test_code_blocks_are_collected() -> None:
    assert len(SCRIPTS) >= 40


def test_the_journal_page_shows_valid_records() -> None:
    (lines,) = fences(DOCS / "journal.md", "json")
    kinds = [type(decode(line.encode())) for line in lines.code.splitlines()]
    assert kinds == [Header, ScalarRow, ScalarRow, End]


def test_every_relative_link_has_a_target() -> None:
    for page in PAGES:
        for token in MarkdownIt().parse(page.read_text()):
            for child in token.children or []:
                target = str(child.attrGet("href") or child.attrGet("src") or "").partition("#")[0]
                if target and "://" not in target:
                    assert (page.parent / target).exists(), (page, target)


COMMANDS = [
    pytest.param(line.split("  #")[0], id=f"{relative_path(page)}: {line[:60]}")
    for page in PAGES
    for block in fences(page, "sh")
    for line in block.code.splitlines()
    if re.match(r"(\w+=\S+ )*(metricbus|make) ", line)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_uses_existing_commands_and_options(line: str) -> None:
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


def test_command_lines_are_collected() -> None:
    assert len(COMMANDS) >= 30


def test_the_generated_command_reference_is_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, DOCS / "made" / "commands.py"],
        capture_output=True,
        text=True,
        check=True,
        timeout=HANG_SECS,
    )
    assert (DOCS / "commands.md").read_text() == result.stdout, "make pages"


def test_the_docs_mention_every_command() -> None:
    text = (DOCS / "cli.md").read_text() + (DOCS / "guide.md").read_text()
    mentioned = [name for name in get_command(app).commands if f"metricbus {name}" in text]  # type: ignore[attr-defined]
    assert set(mentioned) >= {"ls", "show", "compare", "tail", "plot", "import", "deliver"}


def test_the_api_pages_list_exactly_the_public_names() -> None:
    text = "\n".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    documented = re.findall(r"^::: (metricbus[\w.]*)$", text, re.MULTILINE)
    whole = {"metricbus.testing": metricbus.testing.__all__, "metricbus.sinks.base": []}
    public = {f"metricbus.{name}" for name in metricbus.__all__}
    hooks = {f"metricbus.torch.{name}" for name in metricbus.torch.__all__}
    aliases = {name for name in hooks if name.replace(".torch", "") in public}
    # Types that the bus returns, a record, and modules that are documented as a whole.
    additional = {
        "metricbus._bus.live_run.RunConfig",
        "metricbus._bus.scope.Scope",
        "metricbus.sinks.RunUpdate",
        *whole,
    }
    included = {"metricbus.Sink"}  # in metricbus.sinks.base
    assert sorted(documented) == sorted((public | hooks | additional) - aliases - included)
    for names in whole.values():
        assert all(name in text for name in names)


def test_the_site_navigation_lists_every_page() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    for page in sorted(DOCS.rglob("*.md")):
        assert re.search(rf"[ :]{re.escape(str(page.relative_to(DOCS)))}$", nav, re.MULTILINE), page
