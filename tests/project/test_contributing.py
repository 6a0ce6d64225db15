"""CONTRIBUTING.md is accurate, and the existing code meets its requirements."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from markdown_it import MarkdownIt
from typer.main import get_command

from metricbus import MetricBus, media
from metricbus._aggregate.reductions import _BY_NAME, AcrossRanks, reduction_factory
from metricbus._cli.app import app
from metricbus._common.media_records import MEDIA_RECORD_TYPES
from metricbus._common.settings import list_settings
from metricbus.sinks import _BUILTIN, find_sink

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
DOCS = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]

CODE = [
    child.content
    for token in MarkdownIt().enable("table").parse(PAGE)
    for child in (token, *(token.children or []))
    if child.type in ("code_inline", "fence")
]
"""Inline code and code blocks of the page."""

FILES = sorted(
    {path for path in CODE if re.fullmatch(r"[\w./-]+(/|\.(py|md|txt|toml|json))", path)}
)


def recipe(target: str) -> list[str]:
    """Return the commands of a Makefile target."""
    block = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert block, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in block[1].splitlines()]


# The page


def test_pre_commit_hooks_match_the_lint_and_types_targets() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"^ *entry: (.+)$", hooks, re.MULTILINE)
    assert entries == [*recipe("lint"), *recipe("types")]


def test_every_make_target_exists() -> None:
    mentioned = {
        target
        for code in CODE
        for words in re.findall(r"^make ((?:[a-z-]+ ?)+)", code, re.MULTILINE)
        for target in words.split()
    }
    assert mentioned >= {"lint", "test", "docs", "bench"}
    assert mentioned <= set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize("path", FILES)
def test_every_file_exists(path: str) -> None:
    folders = (ROOT, ROOT / "src" / "metricbus", ROOT / "src" / "metricbus" / "sinks")
    is_build_output = path == "dist/"
    assert is_build_output or any((folder / path).exists() for folder in folders)


def test_every_relative_link_has_a_target() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


# Requirements


@pytest.mark.parametrize(
    ("room", "rejected"), [("sinks", {"SLF001", "TID251", "PLC2701"}), ("_compat", set())]
)
def test_ruff_rejects_internals_of_other_packages_outside_compat(
    room: str, rejected: set[str]
) -> None:
    code = """
        import torch
        from wandb.sdk.lib import _private
        print(torch._C, _private)
    """
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json", "-"]
    done = subprocess.run(
        [*command, f"--stdin-filename=src/metricbus/{room}/module.py"],
        input=textwrap.dedent(code),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    codes = {finding["code"] for finding in json.loads(done.stdout)}
    assert codes & {"SLF001", "TID251", "PLC2701"} == rejected


@pytest.mark.parametrize("name", sorted(_BUILTIN))
def test_a_sink_names_the_command_that_installs_its_packages(name: str) -> None:
    sink = find_sink(name)
    assert (sink.__doc__ or "").strip()
    if sink.requires:
        assert sink.install == f"pip install 'metricbus[{name}]'"
        assert name in EXTRAS
        assert any(name in extra for extra in EXTRAS["demo"])


@pytest.mark.parametrize("name", sorted(_BUILTIN))
def test_the_docs_mention_every_sink(name: str) -> None:
    assert f"`{name}`" in DOCS


@pytest.mark.parametrize("record", MEDIA_RECORD_TYPES)
def test_every_sink_accepts_every_medium(record: type) -> None:
    assert [name for name in _BUILTIN if record not in find_sink(name).kinds] == []


@pytest.mark.parametrize("record", MEDIA_RECORD_TYPES)
def test_a_medium_has_a_public_class_that_the_docs_mention(record: type) -> None:
    name = record.__name__.removesuffix("Record")
    assert name in media.__all__
    assert f"`{name}" in DOCS


def test_every_setting_is_an_argument_of_the_bus() -> None:
    """Except for the folder of a run to join, which only the environment can set."""
    arguments = set(inspect.signature(MetricBus).parameters)
    settings = {setting.name for setting in list_settings()}
    assert settings - arguments == {"run_id", "run_dir"}  # `run_id` is the argument `id`
    assert "id" in arguments


def test_the_docs_mention_every_reduction() -> None:
    assert [name for name in _BY_NAME if f"`{name}`" not in DOCS] == []


def test_reductions_across_ranks_can_be_merged() -> None:
    assert [name for name in get_args(AcrossRanks) if not reduction_factory(name)().can_merge] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_an_example_and_the_docs_mention_it(name: str) -> None:
    assert re.search(rf"Example: .*metricbus {name}\b", COMMANDS[name].help)
    assert f"metricbus {name}" in DOCS or f"`{name}`" in DOCS


def test_modules_and_tests_of_mutation_testing_exist() -> None:
    tests = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]["tests"]
    paths = {f"src/metricbus/{module}.py" for module in tests}.union(*tests.values())
    assert sorted(path for path in paths if not (ROOT / path).is_file()) == []
