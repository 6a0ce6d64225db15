"""Several ranks: which ones write, how values are merged, and errors for missing ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metricbus
from metricbus import ConfigError, MetricBus, RankError, Series
from metricbus._aggregate.reductions import reduction_factory
from metricbus._common.distributed import Rank, current_rank, is_writing_rank, launcher_run_id
from metricbus._common.records import Header
from metricbus._ingest.commands import CollectPartials
from metricbus._journal.run import RunFolder
from metricbus._journal.segment_reader import JournalReader
from tests.helpers import rank_scenarios as scenarios
from tests.helpers.rank_scenarios import run_ranks

WaitFor = Callable[[Callable[[], bool]], None]


def series(run: Path, name: str) -> Series:
    return metricbus.read(run).series(name)


def values(run: Path, name: str) -> list[float]:
    series_values: list[float] = series(run, name).value.tolist()
    return series_values


# Finding the rank


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, Rank(0, 1, 0)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Rank(3, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}, Rank(5, 6, 2)),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, Rank(1, 2, 0)),
        ({"LOCAL_RANK": "1"}, Rank(1, 1, 1)),
        ({"LOCAL_RANK": "1", "SLURM_PROCID": "9", "SLURM_NTASKS": "16"}, Rank(9, 16, 0)),
        ({"RANK": "two"}, Rank(0, 1, 0)),
    ],
)
def test_rank_is_read_from_the_launchers_variables(environ: dict[str, str], rank: Rank) -> None:
    assert current_rank(environ) == rank


@pytest.mark.parametrize(
    ("ranks", "rank", "expected"),
    [
        ("0", Rank(0, 2), True),
        ("0", Rank(1, 2), False),
        ("1", Rank(1, 2), True),
        ("all", Rank(1, 2), True),
        ("local0", Rank(4, 8, 0), True),
        ("local0", Rank(5, 8, 1), False),
    ],
)
def test_setting_determines_the_writing_ranks(ranks: str, rank: Rank, expected: bool) -> None:
    assert is_writing_rank(ranks, rank) is expected


@pytest.mark.parametrize("wrong", ["some", "-1", "", "1.5"])
def test_wrong_setting_raises(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ranks="):
        MetricBus(ranks=wrong, sinks="", dir=tmp_path)  # type: ignore[arg-type]


def test_launcher_run_id_ignores_an_id_of_none() -> None:
    assert launcher_run_id({"TORCHELASTIC_RUN_ID": "a"}) == "a"
    assert launcher_run_id({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "7"}) == "7"
    with pytest.raises(ConfigError, match="--rdzv-id"):
        launcher_run_id({"TORCHELASTIC_RUN_ID": "none"})


def test_rank_that_does_not_write_logs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with MetricBus(sinks="csv", dir=tmp_path / "runs") as bus:
        bus.log("x", 1.0)
        assert bus.flush().complete
    assert bus.stats().logged == 0
    assert bus.dir is None
    assert not (tmp_path / "runs").exists()


def test_bad_sink_raises_only_on_the_writing_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError):
        MetricBus(sinks="nonsense", dir=tmp_path)
    monkeypatch.setenv("RANK", "1")
    MetricBus(sinks="nonsense", dir=tmp_path).close()


def test_sync_without_torch_distributed_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("x", across_ranks="sum")
        bus.log("x", 1)
        with pytest.raises(RankError, match="init_process_group"):
            bus.sync()


# One process


def test_single_process_reduces_its_own_values(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.define("loss", across_ranks="mean")
        for value in (1.0, 2.0, 6.0):
            bus.log("loss", value)
        assert bus.sync() == {"loss": 3.0}
        assert bus.sync() == {}
        bus.log("loss", 5.0)
        assert bus.end_epoch() == {"loss": 5.0}
        bus.log("loss", 7.0)
    assert values(tmp_path / "r", "loss") == [3.0, 5.0, 7.0]
    report = bus.stats()
    assert (report.logged, report.derived, report.reduced, report.journalled) == (5, 3, 5, 3)


@pytest.mark.parametrize("wrong", ["median", "ema", "last", "p95", sum])
def test_reduction_that_cannot_be_merged_raises(tmp_path: Path, wrong: Any) -> None:
    with (
        MetricBus(sinks="", dir=tmp_path) as bus,
        pytest.raises(ConfigError, match="across_ranks="),
    ):
        bus.define("x", across_ranks=wrong)


def test_across_ranks_without_epoch_values_raises(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus, pytest.raises(ConfigError, match="on_epoch"):
        bus.define("x", across_ranks="mean", on_epoch=False)


def test_values_never_merged_are_emitted_at_the_end(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.define("x", across_ranks="sum")
        bus.log("x", 1)
        bus.log("x", 2)
    assert values(tmp_path / "r", "x") == [3]


# Merging across ranks


@pytest.mark.parametrize("size", [2, 4])
def test_merged_values_match_a_single_process(tmp_path: Path, size: int) -> None:
    results = run_ranks(tmp_path, size, scenarios.reduce_everything, size)
    all_pairs = [pair for rank in range(size) for pair in scenarios.share_of(rank, size)]
    for result in results:
        assert result == results[0]
        assert result["again"] == {}
        assert result["last"] == result["merged"]["mean"]
        assert "never logged" not in result["merged"]
        for rank in range(size):
            assert result["merged"][f"own/{rank}"] == rank
    for op in ("mean", "sum", "min", "max", "count", "std"):
        expected = reduction_factory(op)()
        for value, weight in all_pairs:
            expected.add(value, weight)
        merged = results[0]["merged"][op]
        if op == "std":
            assert math.isclose(merged, expected.result(), rel_tol=1e-12)
        else:
            assert merged == expected.result()
        assert values(tmp_path / "r", op) == [merged]


def test_values_of_epochs_are_merged_across_ranks(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.many_epochs)
    accuracy = series(tmp_path / "r", "val/acc")
    assert accuracy.value.tolist() == [1.5, 3.0]
    assert accuracy.epoch.tolist() == [0, 1]
    assert values(tmp_path / "r", "train/loss") == [0, 1, 2, 0, 1, 2]
    assert (tmp_path / "r" / "csv" / "metrics.csv").read_text().count("val/acc") == 2


def test_sync_emits_at_the_step_of_the_last_value_in_addition_to_steps(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.sync_in_addition_to_steps)
    assert results == [{"loss_epoch": 15.0}] * 2
    assert values(tmp_path / "r", "loss") == [10, 10]
    assert series(tmp_path / "r", "loss_epoch").step.tolist() == [1]


def test_groups_are_merged_separately(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 4, scenarios.sync_in_groups)
    assert [result[0] for result in results] == [{"n": 11}, {"n": 11}, {"n": 1100}, {"n": 1100}]
    assert [result[1] for result in results] == [{"n": 2222}] * 4
    assert "rank 3 is not in the group of rank 0" in results[3][2]
    assert values(tmp_path / "r", "n") == [11, 2222], "no rank of the other group writes"


def test_error_names_the_missing_rank_and_nothing_is_lost(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 3, scenarios.sync_without_rank_1)
    assert "rank 1 did not arrive within 0.5 s (expected ranks 0, 1, 2)" in results[0][0]
    assert "METRICBUS_SYNC_SECS" in results[0][0]
    assert "had stopped waiting when rank 1 arrived" in results[1][0]
    assert [result[1] for result in results] == [{"n": 6}] * 3, "the next merge has all values"
    assert values(tmp_path / "r", "n") == [6]


def test_error_names_a_dead_rank_and_close_does_not_wait_for_it(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 3, scenarios.sync_with_a_dead_rank)
    assert "rank 2 did not arrive" in results[0][0]
    assert results[2] is None
    assert results[0][1] < 10
    assert values(tmp_path / "r", "n") == [3, 10], "at the end, its own value"
    assert (
        "the ranks were not synchronized after 'n' was logged"
        in (tmp_path / "stderr-0.txt").read_text()
    )


def test_error_for_different_definitions_shows_the_difference(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.define_differently)
    assert results[0] == results[1]
    assert (
        "rank 0 defines 'n' with across_ranks='mean' (named 'n'), rank 1 with 'sum'" in results[0]
    )


# Writing ranks


def test_rank_that_does_not_write_has_no_files_and_no_processes(tmp_path: Path) -> None:
    writer, other = run_ranks(tmp_path, 2, scenarios.resources)
    assert writer["files"] >= 1
    assert writer["children"] >= 1
    assert other == {
        "files": 0,
        "children": 0,
        "folder": False,
        "run": False,
        "last": 1.0,
        "variable": False,
        "complete": True,
    }
    segments = list((tmp_path / "r" / "journal").iterdir())
    assert len(segments) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["r"]


def test_rank_is_found_without_a_launcher(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.write_values, 0, "", "r", launcher=False)
    assert [result[0] for result in results] == [True, False]


def test_another_rank_can_be_the_writing_rank(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.write_values, 1, "", "r")
    assert values(tmp_path / "r", "loss") == [10, 11, 12]
    assert values(tmp_path / "r", "mean") == [0.5]


def test_all_ranks_write_one_run_with_one_delivery(tmp_path: Path) -> None:
    run_ranks(tmp_path, 3, scenarios.write_values, "all", "csv,tensorboard", "r")
    run = tmp_path / "r"
    for rank in range(3):
        prefix = f"rank{rank}/" if rank else ""
        assert values(run, f"{prefix}loss") == [rank * 10 + i for i in range(3)]
        assert len(metricbus.read(run).media(f"{prefix}words")) == 1
    assert values(run, "mean") == [1.0]
    headers = [
        row.record
        for row in JournalReader(run / "journal").read()
        if isinstance(row.record, Header)
    ]
    assert sorted(header.rank for header in headers) == [0, 1, 2]
    assert len(list((run / "offsets").glob("*.json"))) == 2
    text = (run / "csv" / "metrics.csv").read_text()
    assert text.count(",rank2/loss,") == 3
    assert text.count(",mean,") == 1
    assert tensorboard_values(run, "rank1/loss") == [10, 11, 12]


def tensorboard_values(run: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_local0_has_one_writing_rank_per_machine(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.write_values, "local0", "", "r")
    assert [result[0] for result in results] == [True, False]


def test_several_writing_ranks_without_a_common_id_raise(tmp_path: Path) -> None:
    for error in run_ranks(tmp_path, 2, scenarios.open_without_id):
        assert "METRICBUS_RUN_ID" in error
        assert "--rdzv-id" in error


def test_filter_matches_a_name_on_all_ranks(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.write_values, "all", "csv?include=loss", "r")
    text = (tmp_path / "r" / "csv" / "metrics.csv").read_text()
    assert text.count(",loss,") == text.count(",rank1/loss,") == 3
    assert ",mean," not in text


# Decisions


def test_one_rank_decides_for_all_ranks(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.stop_together)
    assert results == [[2, {"from": 0}]] * 2


def test_pending_values_of_rank_0_are_not_restored_on_other_ranks(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, scenarios.resume_from_rank_0) == [{"n": 1}] * 2


def test_sync_computes_a_torchmetrics_object_over_all_ranks(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.sync_torchmetrics_object)
    assert [result[1] for result in results] == [False, False], "it has been reset"
    # rank 0 sees 3 of which 2 are right; rank 1 6 of which 4: macro recalls 3/4, 1, 0 of class 2
    assert results[0] == results[1]
    assert values(tmp_path / "r", "acc") == [pytest.approx(results[0][0]["acc"])]


def test_hooks_log_the_gradients_of_all_ranks(tmp_path: Path) -> None:
    (loss, expected_loss, norm, step), other = run_ranks(tmp_path, 2, scenarios.train_together)
    assert step == other[3] == 1
    assert loss == other[0] == pytest.approx(expected_loss, rel=1e-6)
    assert values(tmp_path / "r", "grad_norm/total") == [pytest.approx(norm, rel=1e-5)]
    assert "grad_norm/weight" in metricbus.read(tmp_path / "r").names(), "without the prefix of DDP"
    assert values(tmp_path / "r", "lr") == [0.1]


# Regressions


def test_different_numbers_of_metric_objects_are_not_synchronized(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.log_different_numbers_of_metrics)
    assert results == [{"m": 0.0}, {"m": 1.0}]
    assert "not every rank has logged it" in (tmp_path / "stderr-0.txt").read_text()


def test_sums_beyond_64_bits_are_merged(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, scenarios.sum_beyond_64_bits) == [{"n": 6 * 2.0**62}] * 2


def test_signal_is_handled_while_a_rank_waits(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, scenarios.interrupt_sync) == [0, None]


def test_error_for_ranks_that_make_different_calls(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.make_different_calls)
    assert results[0] == "rank 0 called agree() while rank 1 called bus.sync()"
    assert results[1] == "rank 1 called bus.sync() while rank 0 called agree()"


def test_values_logged_after_rank_0_has_closed_are_delivered(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    assert run_ranks(tmp_path, 2, scenarios.close_at_different_times) == [None, False]
    file = tmp_path / "r" / "csv" / "metrics.csv"
    wait_for(lambda: ",rank1/last,1" in file.read_text())


def test_no_rank_has_duplicate_rows_after_a_rewind(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.load_state_on_all_ranks)
    assert values(tmp_path / "r", "val") == [10]
    assert values(tmp_path / "r", "rank1/val") == [11]
    assert values(tmp_path / "r", "rank1/train") == [1, 1, 1]


@pytest.mark.parametrize("first", [0, 1])
def test_best_values_of_all_ranks_follow_a_rewind(tmp_path: Path, first: int) -> None:
    run_ranks(tmp_path, 2, scenarios.rewind_past_the_best_value, first)
    assert metricbus.read(tmp_path / "r").run.summary == {"best/x": 0.6, "rank1/best/x": 0.6}


def test_rank_waits_for_the_next_attempt(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.make_two_attempts)
    assert values(tmp_path / "r", "x") == values(tmp_path / "r", "rank1/x") == [0, 1]


def test_new_launcher_id_does_not_split_a_run(tmp_path: Path) -> None:
    for name, error in run_ranks(tmp_path, 2, scenarios.resume_with_new_launcher_id):
        assert name == "best-run-first"
        assert "needs id= or METRICBUS_RUN_ID" in error
        assert "'best-run-first'" in error


def test_warns_about_a_bus_created_before_torch_distributed_was_initialized(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.create_bus_too_early)
    assert results == [[{"n": 2}, {}]] * 2
    text = (tmp_path / "stderr-1.txt").read_text()
    assert text.count("Create the bus after init_process_group()") == 1


def test_last_returns_the_merged_value_at_once(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("n", across_ranks="sum")
        for i in range(100):
            bus.log("n", i)
            assert bus.sync() == {"n": bus.last("n")} == {"n": i}


def test_collect_partials_can_be_claimed_only_once() -> None:
    command = CollectPartials()
    assert command.claim()
    assert not command.claim()


@pytest.mark.parametrize("block_secs", [0, 0.001])
def test_merging_does_not_depend_on_block_secs(tmp_path: Path, block_secs: float) -> None:
    with MetricBus(sinks="", dir=tmp_path, block_secs=block_secs) as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", 1)
        assert bus.end_epoch() == {"n": 1}


def test_values_logged_by_hooks_on_other_ranks_are_merged(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, scenarios.log_by_hooks)
    assert results == [{"clip/norm_before": 6.0, "time/step": 4}] * 2


def test_rank_that_loads_a_checkpoint_in_the_third_attempt_supersedes_no_other_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ranks live in this process; the environment says which one opens a bus."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    states: dict[int, dict[str, Any]] = {}
    for attempt in range(3):
        buses = []
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            bus = MetricBus(id="r", dir=tmp_path, sinks="", ranks="all", resume=True)
            if attempt:
                bus.load_state_dict(states[rank])
            for step in range(3 * attempt, 3 * attempt + 3):
                bus.log("x", 10.0 * attempt + rank, step=step)
            states[rank] = bus.state_dict()
            buses.append(bus)
        for bus in reversed(buses):
            bus.close()
    history = metricbus.read(tmp_path / "r")
    for rank, name in enumerate(("x", "rank1/x")):
        series = history.series(name)
        assert series.step.tolist() == list(range(9))
        assert series.value.tolist() == [10.0 * (step // 3) + rank for step in range(9)]


def test_each_writing_rank_adds_to_the_run(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.grow_the_run)
    folder = RunFolder(tmp_path / "r")
    for run in (metricbus.read(folder.path).run, folder.load()):
        assert run.config == {"of-0": 0, "of-1": 1}
        assert set(run.tags) == {"common", "rank-0", "rank-1"}
        assert run.summary == {"best/x": 1.0, "y": 0, "rank1/best/x": 2.0, "rank1/y": 1}


def test_rank_that_does_not_write_shows_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with MetricBus(sinks="csv", dir=tmp_path / "runs") as bus:
        bus.config.update(lr=0.1)
        bus.add_tags("a")
        bus.summarize("x", 1.0)
        assert bus.config == {"lr": 0.1}
    assert not (tmp_path / "runs").exists()
