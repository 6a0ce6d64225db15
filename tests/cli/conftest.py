"""A run for the tests of the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.helpers.cli_runs import make_run


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid run that the tests of a module share and do not change."""
    return make_run(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def run_copy(shared_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test can damage."""
    return shutil.copytree(shared_run, tmp_path / "runs" / "r")
