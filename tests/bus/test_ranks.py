"""Several ranks: who writes, how they meet, and what becomes of one that does not come."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import metricbus
from metricbus import ConfigError, MetricBus, RankError, Series
from metricbus._aggregate.reductions import reduction_factory
from metricbus._common.distributed import Rank, current_rank, launcher_run_id, is_writing_rank
from metricbus._common.records import Header
from metricbus._ingest.commands import CollectPartials
from metricbus._journal.segment_reader import JournalReader
from tests.helpers import rank_scenarios as scenarios
from tests.helpers.rank_scenarios import run_ranks

WaitFor = Callable[[Callable[[], bool]], None]


def series(run: Path, name: str) -> Series:
    return metricbus.read(run).series(name)


def values(run: Path, name: str) -> list[float]:
    found: list[float] = series(run, name).value.tolist()
    return found


# Which rank


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
def test_the_launcher_says_which_rank_it_is(environ: dict[str, str], rank: Rank) -> None:
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
def test_the_setting_says_who_writes(ranks: str, rank: Rank, expected: bool) -> None:
    assert is_writing_rank(ranks, rank) is expected


@pytest.mark.parametrize("wrong", ["some", "-1", "", "1.5"])
def test_other_settings_are_refused(wrong: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ranks="):
        MetricBus(ranks=wrong, sinks="", dir=tmp_path)  # type: ignore[arg-type]


def test_the_launchers_id_is_taken_unless_it_is_none() -> None:
    assert launcher_run_id({"TORCHELASTIC_RUN_ID": "a"}) == "a"
    assert launcher_run_id({"TORCHELASTIC_RUN_ID": "none", "SLURM_JOB_ID": "7"}) == "7"
    with pytest.raises(ConfigError, match="--rdzv-id"):
        launcher_run_id({"TORCHELASTIC_RUN_ID": "none"})


def test_a_rank_that_does_not_write_logs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with MetricBus(sinks="csv", dir=tmp_path / "runs") as bus:
        bus.log("x", 1.0)
        assert bus.flush().complete
    assert bus.stats().logged == 0
    assert bus.folder is None
    assert not (tmp_path / "runs").exists()


def test_a_bad_sink_is_told_on_the_rank_that_writes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError):
        MetricBus(sinks="nonsense", dir=tmp_path)
    monkeypatch.setenv("RANK", "1")
    MetricBus(sinks="nonsense", dir=tmp_path).close()


def test_ranks_by_the_launchers_word_alone_cannot_meet(
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


def test_one_process_reduces_its_own(tmp_path: Path) -> None:
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
def test_what_cannot_be_put_together_from_parts_is_refused(tmp_path: Path, wrong: Any) -> None:
    with (
        MetricBus(sinks="", dir=tmp_path) as bus,
        pytest.raises(ConfigError, match="across_ranks="),
    ):
        bus.define("x", across_ranks=wrong)


def test_never_at_the_end_of_an_epoch_is_refused(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus, pytest.raises(ConfigError, match="on_epoch"):
        bus.define("x", across_ranks="mean", on_epoch=False)


def test_what_never_met_comes_out_at_the_end(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.define("x", across_ranks="sum")
        bus.log("x", 1)
        bus.log("x", 2)
    assert values(tmp_path / "r", "x") == [3]


# Meeting


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_get_what_one_process_would_have(tmp_path: Path, size: int) -> None:
    said = run_ranks(tmp_path, size, scenarios.reduce_everything, size)
    everything = [pair for rank in range(size) for pair in scenarios.loaned(rank, size)]
    for one in said:
        assert one == said[0]
        assert one["again"] == {}
        assert one["last"] == one["results"]["mean"]
        assert "nobody" not in one["results"]
        for rank in range(size):
            assert one["results"][f"own/{rank}"] == rank
    for op in ("mean", "sum", "min", "max", "count", "std"):
        alone = reduction_factory(op)()
        for value, weight in everything:
            alone.add(value, weight)
        found = said[0]["results"][op]
        if op == "std":
            assert math.isclose(found, alone.result(), rel_tol=1e-12)
        else:
            assert found == alone.result()
        assert values(tmp_path / "r", op) == [found]


def test_the_epochs_of_a_loop_are_reduced_over_ranks(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.many_epochs)
    found = series(tmp_path / "r", "val/acc")
    assert found.value.tolist() == [1.5, 3.0]
    assert found.epoch.tolist() == [0, 1]
    assert values(tmp_path / "r", "train/loss") == [0, 1, 2, 0, 1, 2]
    assert (tmp_path / "r" / "csv" / "metrics.csv").read_text().count("val/acc") == 2


def test_a_sync_stands_where_the_values_do_and_beside_their_steps(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.beside_steps)
    assert said == [{"loss_epoch": 15.0}] * 2
    assert values(tmp_path / "r", "loss") == [10, 10]
    assert series(tmp_path / "r", "loss_epoch").step.tolist() == [1]


def test_groups_meet_by_themselves(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 4, scenarios.in_groups)
    assert [one[0] for one in said] == [{"n": 11}, {"n": 11}, {"n": 1100}, {"n": 1100}]
    assert [one[1] for one in said] == [{"n": 2222}] * 4
    assert "rank 3 is not in the group of rank 0" in said[3][2]
    assert values(tmp_path / "r", "n") == [11, 2222], "no rank of the other group writes"


def test_a_rank_that_does_not_come_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 3, scenarios.without_one)
    assert "rank 1 did not arrive within 0.5 s (expected ranks 0, 1, 2)" in said[0][0]
    assert "METRICBUS_SYNC_SECS" in said[0][0]
    assert "had stopped waiting when rank 1 arrived" in said[1][0]
    assert [one[1] for one in said] == [{"n": 6}] * 3, "the next meeting has it all"
    assert values(tmp_path / "r", "n") == [6]


def test_a_rank_that_has_died_is_named_and_the_end_waits_for_nobody(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 3, scenarios.with_a_death)
    assert "rank 2 did not arrive" in said[0][0]
    assert said[2] is None
    assert said[0][1] < 10
    assert values(tmp_path / "r", "n") == [3, 10], "what it had itself, at the end"
    assert "the ranks have not met since 'n' was logged" in (tmp_path / "stderr-0.txt").read_text()


def test_definitions_that_differ_are_an_error_that_tells_how(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.apart)
    assert said[0] == said[1]
    assert "rank 0 defines 'n' with across_ranks='mean', rank 1 with 'sum'" in said[0]


# Who writes


def test_a_rank_that_does_not_write_has_no_file_and_no_process(tmp_path: Path) -> None:
    writer, silent = run_ranks(tmp_path, 2, scenarios.what_it_holds)
    assert writer["files"] >= 1
    assert writer["children"] >= 1
    assert silent == {
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


def test_the_rank_is_found_without_a_launcher_too(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.writing, 0, "", "r", launcher=False)
    assert [one[0] for one in said] == [True, False]


def test_another_rank_may_be_the_one_that_writes(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.writing, 1, "", "r")
    assert values(tmp_path / "r", "loss") == [10, 11, 12]
    assert values(tmp_path / "r", "mean") == [0.5]


def test_all_ranks_write_one_run_and_one_delivery_brings_it(tmp_path: Path) -> None:
    run_ranks(tmp_path, 3, scenarios.writing, "all", "csv,tensorboard", "r")
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


def test_local0_has_one_writer_on_each_machine(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.writing, "local0", "", "r")
    assert [one[0] for one in said] == [True, False]


def test_several_writers_without_an_id_in_common_are_refused(tmp_path: Path) -> None:
    for said in run_ranks(tmp_path, 2, scenarios.without_an_id):
        assert "METRICBUS_RUN_ID" in said
        assert "--rdzv-id" in said


def test_a_filter_speaks_of_a_name_on_all_ranks(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.writing, "all", "csv?include=loss", "r")
    text = (tmp_path / "r" / "csv" / "metrics.csv").read_text()
    assert text.count(",loss,") == text.count(",rank1/loss,") == 3
    assert ",mean," not in text


# Decisions


def test_one_rank_decides_and_all_are_told(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.stop_together)
    assert said == [[2, {"from": 0}]] * 2


def test_what_was_open_on_rank_0_is_not_counted_on_the_others_too(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, scenarios.resume_from_rank_0) == [{"n": 1}] * 2


def test_a_torchmetrics_object_is_synchronised_where_the_ranks_meet(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.metric_across)
    assert [one[1] for one in said] == [False, False], "it begins anew"
    # rank 0 sees 3 of which 2 are right; rank 1 6 of which 4: macro recalls 3/4, 1, 0 of class 2
    assert said[0] == said[1]
    assert values(tmp_path / "r", "acc") == [pytest.approx(said[0][0]["acc"])]


def test_hooks_see_the_gradients_of_all_ranks(tmp_path: Path) -> None:
    (loss, whole, norm, step), other = run_ranks(tmp_path, 2, scenarios.train_together)
    assert step == other[3] == 1
    assert loss == other[0] == pytest.approx(whole, rel=1e-6)
    assert values(tmp_path / "r", "grad_norm/total") == [pytest.approx(norm, rel=1e-5)]
    assert "grad_norm/weight" in metricbus.read(tmp_path / "r").names(), "without DDP's prefix"
    assert values(tmp_path / "r", "lr") == [0.1]


# What a hunt found


def test_metric_objects_that_ranks_have_in_different_numbers_meet_nobody(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.with_other_numbers_of_metrics)
    assert said == [{"m": 0.0}, {"m": 1.0}]
    assert "not every rank has logged it" in (tmp_path / "stderr-0.txt").read_text()


def test_sums_beyond_64_bits_meet(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, scenarios.beyond_64_bits) == [{"n": 6 * 2.0**62}] * 2


def test_a_signal_is_handled_while_a_rank_waits(tmp_path: Path) -> None:
    assert run_ranks(tmp_path, 2, scenarios.interrupted) == [0, None]


def test_ranks_that_call_different_things_are_told(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.crossed_calls)
    assert said[0] == "rank 0 called agree() while rank 1 called bus.sync()"
    assert said[1] == "rank 1 called bus.sync() while rank 0 called agree()"


def test_what_a_rank_logs_after_the_first_has_closed_is_delivered(
    tmp_path: Path, wait_for: WaitFor
) -> None:
    assert run_ranks(tmp_path, 2, scenarios.close_at_different_times) == [None, False]
    file = tmp_path / "r" / "csv" / "metrics.csv"
    wait_for(lambda: ",rank1/last,1" in file.read_text())


def test_after_a_rewind_no_rank_has_a_row_twice(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.go_back_together)
    assert values(tmp_path / "r", "val") == [10]
    assert values(tmp_path / "r", "rank1/val") == [11]
    assert values(tmp_path / "r", "rank1/train") == [1, 1, 1]


def test_a_rank_waits_for_the_next_attempt(tmp_path: Path) -> None:
    run_ranks(tmp_path, 2, scenarios.one_after_the_other)
    assert values(tmp_path / "r", "x") == values(tmp_path / "r", "rank1/x") == [0, 1]


def test_an_id_that_the_launcher_made_up_anew_does_not_split_a_run(tmp_path: Path) -> None:
    for name, error in run_ranks(tmp_path, 2, scenarios.resume_a_launch):
        assert name == "best-run-first"
        assert "needs id= or METRICBUS_RUN_ID" in error
        assert "'best-run-first'" in error


def test_a_bus_that_was_made_before_there_were_ranks_is_told_of(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.made_too_early)
    assert said == [[{"n": 2}, {}]] * 2
    text = (tmp_path / "stderr-1.txt").read_text()
    assert text.count("Make it after init_process_group()") == 1


def test_the_newest_value_is_that_of_the_meeting_at_once(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("n", across_ranks="sum")
        for i in range(100):
            bus.log("n", i)
            assert bus.sync() == {"n": bus.last("n")} == {"n": i}


def test_a_part_is_taken_or_withdrawn_and_never_both() -> None:
    control = CollectPartials()
    assert control.claim()
    assert not control.claim()


@pytest.mark.parametrize("block_secs", [0, 0.001])
def test_meetings_do_not_depend_on_how_long_a_full_queue_is_waited_for(
    tmp_path: Path, block_secs: float
) -> None:
    with MetricBus(sinks="", dir=tmp_path, block_secs=block_secs) as bus:
        bus.define("n", across_ranks="sum")
        bus.log("n", 1)
        assert bus.end_epoch() == {"n": 1}


def test_what_hooks_log_on_a_silent_rank_is_reduced_with_the_rest(tmp_path: Path) -> None:
    said = run_ranks(tmp_path, 2, scenarios.time_and_clip)
    assert said == [{"clip/norm_before": 6.0, "time/step": 4}] * 2
