"""Kills at random instants. `make chaos` has more of them."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers import kill_trials

KILLS = int(os.environ.get("CHAOS_KILLS", "200"))
KILLS_WITH_ALL = int(os.environ.get("CHAOS_KILLS_WITH_ALL", "20"))
AT_ONCE = 10
ALL = "csv,tensorboard,wandb?mode=offline,mlflow"


def kill_and_check(place: Path, seed: int) -> int:
    hosting = "process" if seed % 4 == 0 else "thread"
    killed = kill_trials.run_and_kill(place, seed, "csv", longest=2.0, hosting=hosting, pause=0.004)
    records = kill_trials.check_journal(killed)
    kill_trials.deliver_the_rest(killed.folder, "csv")
    assert kill_trials.in_csv(killed.folder) == kill_trials.expected(records, marked=False)
    remove(place)
    return len(records)


def remove(place: Path) -> None:
    """A delivery process that was only coming up may have outlived the kill, and still write."""
    deadline = time.monotonic() + 20
    while place.exists():
        assert time.monotonic() < deadline
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.timeout(60 + KILLS * 3)
def test_a_kill_at_any_instant_loses_nothing_that_is_older_than_a_second(tmp_path: Path) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seeds = range(KILLS)
        found = list(pool.map(lambda seed: kill_and_check(tmp_path / str(seed), seed), seeds))
    assert sum(found) > KILLS * 100, "the runs died before they had logged anything"


def kill_and_check_all(place: Path, seed: int, database: Path) -> int:
    place.mkdir()
    shutil.copy(database, place / "mlflow.db")
    hosting = "thread" if seed % 4 == 0 else "process"
    killed = kill_trials.run_and_kill(place, seed, ALL, longest=6.0, hosting=hosting, pause=0.05)
    records = kill_trials.check_journal(killed)
    kill_trials.deliver_the_rest(killed.folder, ALL)
    plain, marked = (kill_trials.expected(records, marked=marked) for marked in (False, True))
    assert kill_trials.in_csv(killed.folder) == plain
    assert kill_trials.in_tensorboard(killed.folder) == marked
    assert kill_trials.in_mlflow(place / "mlflow.db") == marked
    assert kill_trials.in_wandb(killed.folder) == plain
    return len(records)


@pytest.mark.timeout(60 + KILLS_WITH_ALL * 20)
def test_a_kill_of_training_or_delivery_doubles_and_loses_nothing_in_any_sink(
    tmp_path: Path,
) -> None:
    database = tmp_path / "template.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    with ThreadPoolExecutor(2) as pool:
        seeds = range(KILLS_WITH_ALL)
        found = list(
            pool.map(lambda seed: kill_and_check_all(tmp_path / str(seed), seed, database), seeds)
        )
    assert sum(found) > KILLS_WITH_ALL * 100
