"""Fixtures for the tests of several sinks."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create an MLflow database once per module, because that takes MLflow seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "shared.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file
