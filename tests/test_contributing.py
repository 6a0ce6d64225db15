"""What CONTRIBUTING.md tells is so, and what it asks for is done by what is there already."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from metricbus import MetricBus
from metricbus.across import REDUCERS
from metricbus.cli.app import app
from metricbus.config import declared
from metricbus.media_records import MEDIA
from metricbus.metric_bus import AcrossRanks
from metricbus.reductions import _SIMPLE, reduction_factory
from metricbus.sinks import _OURS, find_sink

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile."""
    block = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert block, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in block[1].splitlines()]


def without_fences(page: str) -> str:
    return re.sub(r"```.*?```", "", page, flags=re.DOTALL)


def test_hooks_before_a_commit_are_the_commands_of_lint_and_types() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"^ *entry: (.+)$", hooks, re.MULTILINE)
    assert entries == [*recipe("lint"), *recipe("types")]


def test_every_make_target_that_is_told_is_there() -> None:
    told = {target for words in re.findall(r"\bmake ([a-z -]+)", PAGE) for target in words.split()}
    told &= {word for words in re.findall(r"`make ([^`]+)`", PAGE) for word in words.split()}
    assert len(told) >= 6
    for target in told:
        recipe(target) if target != "test" else None
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w./-]+/[\w./-]*|\w+\.(?:py|md|txt|toml))`", PAGE))))
def test_every_path_that_is_told_is_there(name: str) -> None:
    places = [ROOT, ROOT / "src" / "metricbus" / "sinks"]
    assert name == "dist/" or any((place / name).exists() for place in places)
