"""Kills at random instants. `make chaos` runs more of them."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers import kill_trials
from tests.helpers.limits import scaled

KILLS = int(os.environ.get("CHAOS_KILLS", "200"))
KILLS_WITH_ALL = int(os.environ.get("CHAOS_KILLS_WITH_ALL", "20"))
PARALLEL_KILLS = 10
ALL = "csv,tensorboard,wandb?mode=offline,mlflow"


def kill_and_check(folder: Path, seed: int) -> int:
    hosting = "process" if seed % 4 == 0 else "thread"
    killed = kill_trials.run_and_kill(
        folder, seed, "csv", longest=2.0, hosting=hosting, pause=0.004
    )
    records = kill_trials.check_journal(killed)
    kill_trials.deliver_pending(killed.folder, "csv")
    assert kill_trials.csv_points(killed.folder) == kill_trials.expected_points(
        records, marked=False
    )
    remove(folder)
    return len(records)


def remove(folder: Path) -> None:
    """Remove a folder into which a delivery process that was starting may still write."""
    deadline = time.monotonic() + scaled(60)
    while folder.exists():
        assert time.monotonic() < deadline
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(scaled(240 + KILLS * 12))
def test_a_kill_at_any_instant_loses_no_value_older_than_a_second(tmp_path: Path) -> None:
    with ThreadPoolExecutor(PARALLEL_KILLS) as pool:
        seeds = range(KILLS)
        counts = list(pool.map(lambda seed: kill_and_check(tmp_path / str(seed), seed), seeds))
    assert sum(counts) > KILLS * 100, "the runs died before they logged anything"


def kill_and_check_all(folder: Path, seed: int, database: Path) -> int:
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    hosting = "thread" if seed % 4 == 0 else "process"
    killed = kill_trials.run_and_kill(folder, seed, ALL, longest=6.0, hosting=hosting, pause=0.05)
    records = kill_trials.check_journal(killed)
    kill_trials.deliver_pending(killed.folder, ALL)
    plain, marked = (
        kill_trials.expected_points(records, marked=marked) for marked in (False, True)
    )
    assert kill_trials.csv_points(killed.folder) == plain
    assert kill_trials.tensorboard_points(killed.folder) == marked
    assert kill_trials.mlflow_points(folder / "mlflow.db") == marked
    assert kill_trials.wandb_points(killed.folder) == plain
    return len(records)


@pytest.mark.timeout(scaled(240 + KILLS_WITH_ALL * 80))
def test_a_kill_of_training_or_delivery_loses_and_duplicates_nothing_in_any_sink(
    tmp_path: Path,
) -> None:
    database = tmp_path / "template.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    with ThreadPoolExecutor(2) as pool:
        seeds = range(KILLS_WITH_ALL)
        counts = list(
            pool.map(lambda seed: kill_and_check_all(tmp_path / str(seed), seed, database), seeds)
        )
    assert sum(counts) > KILLS_WITH_ALL * 100
