"""Runs that metricbus 0.1.0 wrote are read, resumed and delivered.

Version 0.1.0 wrote the files in `data/` before the package was reorganized; see `make.py`. The run
`killed` was killed at step 10, when its sinks had received steps 0 to 6. Its checkpoint is from
step 7. The run `finished` was closed normally. The expected values are what `make.py` logged.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import metricbus
from metricbus import MetricBus
from tests.helpers.limits import HANG_SECS

DATA = Path(__file__).resolve().parent / "data"

HOST = "training-host"  # in run.json, the journal and the leases
BEGAN = 1_767_225_600 * 10**9

CSV_DELIVERED = """\
step,epoch,time,name,value,kind
0,0,1767225600.000000000,train/examples,9007199254740993,scalar
0,0,1767225600.000000000,train/grad,0.0,scalar
0,0,1767225600.000000000,weights,histograms.csv,histogram
0,0,1767225600.000000000,notes,../media/texts/notes-ab5aa970/0-0001.1.md,text
1,0,1767225601.000000000,train/examples,9007199254740994,scalar
1,0,1767225601.000000000,train/grad,nan,scalar
1,0,1767225601.000000000,errors,tables/errors-be4bd567-000000000000.csv,table
2,0,1767225602.000000000,train/examples,9007199254740995,scalar
2,0,1767225602.000000000,train/grad,inf,scalar
2,0,1767225602.000000000,sample,../media/images/sample-af2bdbe1/2-0001.3.png,image
2,0,1767225602.000000000,sample,four pixels,caption
3,0,1767225603.000000000,train/loss,1.5,scalar
3,0,1767225603.000000000,train/examples,9007199254740996,scalar
3,0,1767225603.000000000,train/grad,-inf,scalar
4,0,1767225604.000000000,train/examples,9007199254740997,scalar
4,0,1767225604.000000000,train/grad,1.0,scalar
5,0,1767225605.000000000,train/examples,9007199254740998,scalar
5,0,1767225605.000000000,train/grad,1.25,scalar
5,0,1767225606.000000000,time/epoch,6.0,scalar
5,0,1767225605.000000000,train/loss,4.5,scalar
5,0,1767225605.000000000,val/acc,0.75,scalar
6,1,1767225606.000000000,train/examples,9007199254740999,scalar
6,1,1767225606.000000000,train/grad,1.5,scalar
"""

CSV_PENDING = """\
7,1,1767225607.000000000,train/examples,9007199254741000,scalar
7,1,1767225607.000000000,train/grad,1.75,scalar
7,1,1767225607.000000000,errors,tables/errors-be4bd567-000000000000.csv,table
7,1,1767225607.000000000,weights,histograms.csv,histogram
8,1,1767225608.000000000,train/examples,9007199254741001,scalar
8,1,1767225608.000000000,train/grad,2.0,scalar
9,1,1767225609.000000000,train/loss,7.5,scalar
9,1,1767225609.000000000,train/examples,9007199254741002,scalar
9,1,1767225609.000000000,train/grad,2.25,scalar
9,1,1767225609.000000000,errors,tables/errors-be4bd567-000000000000.csv,table
9,1,1767225609.000000000,sample,../media/images/sample-af2bdbe1/9-0001.6.png,image
9,1,1767225609.000000000,sample,superseded,caption
10,1,1767225610.000000000,train/examples,9007199254741003,scalar
10,1,1767225610.000000000,train/grad,2.5,scalar
"""

CSV_PARTIAL = """\
10,1,1767225610.000000000,train/loss,10.0,partial
10,1,1767225610.000000000,val/acc,0.375,partial
"""

CSV_AFTER_RESUMING = """\
7,1,,,rewind
8,1,train/grad,-1.0,scalar
9,1,train/loss,57.5,scalar
9,1,train/grad,-1.0,scalar
10,1,train/grad,-1.0,scalar
11,1,train/grad,-1.0,scalar
11,1,train/loss,110.5,scalar
11,1,val/acc,0.4375,scalar
"""

GRAD = [0.0, math.nan, math.inf, -math.inf, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data, with the host name of the machine that wrote it.

    On that host, the processes of the runs have died.
    """
    uname = os.uname_result(("Linux", HOST, "", "", ""))
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(DATA, tmp_path / "runs"))


def resume(runs: Path) -> MetricBus:
    bus = MetricBus(
        id="killed", resume="must", dir=runs, sinks="csv,tensorboard", delivery="thread"
    )
    bus.define("train/loss", every=4, reduce="mean")
    bus.define("val/acc", on_step=False, on_epoch=True)
    return bus


def json_checkpoint(runs: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((runs / "checkpoint.json").read_text())
    return state


def pickle_checkpoint(runs: Path) -> dict[str, Any]:
    state: dict[str, Any] = pickle.loads((runs / "checkpoint.pickle").read_bytes())
    return state


def torch_checkpoint(runs: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(runs / "checkpoint.pt", weights_only=True)["bus"]
    return state


def resume_and_finish(
    runs: Path, load: Callable[[Path], dict[str, Any]] = json_checkpoint
) -> MetricBus:
    """Load the checkpoint and run the remaining four steps of the second epoch."""
    with resume(runs) as bus:
        bus.load_state_dict(load(runs))
        for _ in bus.epochs(1):
            for _ in bus.steps(range(4)):
                bus.log({"train/loss": 100.0 + bus.step, "train/grad": -1.0})
            bus.log("val/acc", 1.0)
    return bus


def points(history: metricbus.History, name: str) -> list[tuple[int, int, Any]]:
    """Return a series as tuples of step, epoch and value."""
    series = history.series(name)
    columns = series.step.tolist(), series.epoch.tolist(), series.value.tolist()
    return list(zip(*columns, strict=True))


def parse_rows(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))


def read_rows(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def read_events(folder: Path) -> EventAccumulator:
    no_limits = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    accumulator = EventAccumulator(str(folder), size_guidance=no_limits)
    accumulator.Reload()
    return accumulator


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def event_file(run: Path) -> Path:
    (file,) = (run / "tensorboard").iterdir()
    return file


# Reading


def test_the_killed_run_is_read(runs: Path) -> None:
    history = metricbus.read(runs / "killed")
    assert set(history.names()) == {
        "train/loss",
        "train/examples",
        "train/grad",
        "val/acc",
        "time/epoch",
    }
    assert points(history, "train/loss") == [(3, 0, 1.5), (5, 0, 4.5), (9, 1, 7.5)]
    assert points(history, "val/acc") == [(5, 0, 0.75)]
    assert points(history, "time/epoch") == [(5, 0, 6.0)]
    assert history.damaged == history.torn == 0


def test_integers_beyond_float64_are_read_exactly(runs: Path) -> None:
    values = metricbus.read(runs / "killed").series("train/examples").value.tolist()
    assert values == [9007199254740993 + step for step in range(11)]


def test_nan_and_infinities_are_read(runs: Path) -> None:
    np.testing.assert_array_equal(metricbus.read(runs / "killed").series("train/grad").value, GRAD)


def test_times_are_read_to_the_nanosecond(runs: Path) -> None:
    times = metricbus.read(runs / "killed").series("train/grad").time.tolist()
    assert times == [BEGAN + step * 10**9 for step in range(11)]


def test_the_metadata_of_the_run_are_read(runs: Path) -> None:
    run = metricbus.read(runs / "killed").run
    assert (run.id, run.name, run.project) == ("killed", "digits", "compat")
    assert (run.tags, run.notes) == (["old"], "Killed at step 10.")
    assert run.config == {"lr": 0.5, "optimizer": {"name": "adam"}}
    assert run.sinks == ["csv", "tensorboard"]
    assert (run.started, run.attempt) == (BEGAN, 1)


def test_pending_reductions_of_the_killed_run_are_read_as_partial_rows(runs: Path) -> None:
    partial = metricbus.read(runs / "killed").partial
    assert [(row.step, row.epoch, row.values) for row in partial] == [
        (10, 1, {"train/loss": 10.0}),
        (10, 1, {"val/acc": 0.375}),
    ]


def test_histograms_are_read(runs: Path) -> None:
    media: list[Any] = list(metricbus.read(runs / "killed").media("weights"))
    first, second = media
    assert (first.step, second.step) == (0, 7)
    assert (first.counts, first.edges) == ([1, 2, 0, 1], [0.0, 1.0, 2.0, 3.0, 4.0])
    assert (second.counts, second.edges) == ([1, 2, 0, 1], [0.0, 2.0, 4.0, 6.0, 8.0])


def test_images_are_read(runs: Path) -> None:
    history = metricbus.read(runs / "killed")
    image: Any = history.media("sample")[0]
    assert (image.step, image.caption) == (2, "four pixels")
    with Image.open(io.BytesIO(history.files.read(image.file))) as picture:
        assert np.asarray(picture).tolist() == [[0, 255], [255, 0]]


def test_texts_are_read(runs: Path) -> None:
    history = metricbus.read(runs / "killed")
    text: Any
    (text,) = history.media("notes")
    assert history.files.read(text.file) == b"# First try"


def test_a_table_that_was_logged_in_parts_is_read_whole(runs: Path) -> None:
    (table,) = metricbus.read(runs / "killed").tables("errors")
    assert table.columns == ["step", "guess"]
    assert table.rows == [[1, "cat"], [1, "=dog"], [7, "seal"], [9, "owl"]]
    assert table.missing == 0


def test_the_finished_run_is_read(runs: Path) -> None:
    history = metricbus.read(runs / "finished")
    assert points(history, "train/loss") == [(0, 0, 1.0), (1, 0, 0.5), (2, 0, 1 / 3)]
    assert points(history, "train/examples") == [(0, 0, 64), (1, 0, 128), (2, 0, 192)]
    assert history.partial == []


def test_the_finished_run_counts_as_finished(runs: Path) -> None:
    run = metricbus.read(runs / "finished").run
    assert (run.status, run.ended) == ("finished", BEGAN + 3 * 10**9)


# Delivering


def test_the_killed_run_counts_as_killed_once_it_is_delivered(runs: Path) -> None:
    assert metricbus.read(runs / "killed").run.status == "running"
    metricbus.deliver(runs / "killed")
    assert metricbus.read(runs / "killed").run.status == "killed"


def test_pending_values_are_delivered_to_the_sinks_of_the_run(runs: Path) -> None:
    counts = metricbus.deliver(runs / "killed")
    assert list(counts) == ["csv", "tensorboard"]
    for sink in counts.values():
        assert (sink.delivered, sink.rejected, sink.filtered, sink.pending) == (37, 0, 0, 0)


def test_delivery_starts_at_the_saved_offset(runs: Path) -> None:
    """A delivery that starts at the beginning of the journal would repeat the marked line."""
    file = runs / "killed" / "csv" / "metrics.csv"
    file.write_bytes(file.read_bytes().replace(b"four pixels", b"FOUR PIXELS"))
    metricbus.deliver(runs / "killed")
    assert file.read_bytes().count(b"FOUR PIXELS") == 1
    assert b"four pixels" not in file.read_bytes()


def test_delivery_saves_its_progress_in_the_same_files(runs: Path) -> None:
    offsets = runs / "killed" / "offsets"
    before = {file.name for file in offsets.glob("*.json")}
    metricbus.deliver(runs / "killed")
    assert {file.name for file in offsets.glob("*.json")} == before


def test_delivery_takes_over_the_leases_of_the_killed_process(runs: Path) -> None:
    offsets = runs / "killed" / "offsets"
    assert len(list(offsets.glob("*.lease-000001"))) == 2
    metricbus.deliver(runs / "killed", timeout=HANG_SECS)
    assert list(offsets.glob("*.lease-*")) == []


def test_delivery_appends_pending_values_to_the_csv_file(runs: Path) -> None:
    file = runs / "killed" / "csv" / "metrics.csv"
    assert read_rows(file) == parse_rows(CSV_DELIVERED)
    before = file.read_bytes()
    metricbus.deliver(runs / "killed")
    assert read_rows(file) == parse_rows(CSV_DELIVERED + CSV_PENDING + CSV_PARTIAL)
    assert file.read_bytes().startswith(before)


def test_delivery_appends_pending_media_to_the_csv_files(runs: Path) -> None:
    folder = runs / "killed" / "csv"
    metricbus.deliver(runs / "killed")
    (table,) = (folder / "tables").iterdir()
    assert read_rows(table) == [
        ["step", "guess"],
        ["1", "cat"],
        ["1", "'=dog"],
        ["7", "seal"],
        ["9", "owl"],
    ]
    parts = [(row[0], *row[5:]) for row in read_rows(folder / "tables.csv")[1:]]
    assert parts == [("1", "0", "2", "28"), ("7", "2", "1", "36"), ("9", "3", "1", "43")]
    histograms = [(row[0], *row[14:]) for row in read_rows(folder / "histograms.csv")[1:]]
    assert histograms == [
        ("0", "", "", ""),
        ("0", "0.0", "1.0", "1"),
        ("0", "1.0", "2.0", "2"),
        ("0", "2.0", "3.0", "0"),
        ("0", "3.0", "4.0", "1"),
        ("7", "", "", ""),
        ("7", "0.0", "2.0", "1"),
        ("7", "2.0", "4.0", "2"),
        ("7", "4.0", "6.0", "0"),
        ("7", "6.0", "8.0", "1"),
    ]


def test_delivery_appends_pending_values_to_the_event_file(runs: Path) -> None:
    file = event_file(runs / "killed")
    before = file.read_bytes()
    old = read_events(file)
    assert scalars(old, "train/loss") == [(3, 1.5), (5, 4.5)]
    assert [step for step, _ in scalars(old, "train/grad")] == list(range(7))
    metricbus.deliver(runs / "killed")
    assert event_file(runs / "killed") == file
    assert file.read_bytes().startswith(before)
    events = read_events(file)
    assert scalars(events, "train/loss") == [(3, 1.5), (5, 4.5), (9, 7.5)]
    np.testing.assert_array_equal(scalars(events, "train/grad"), list(enumerate(GRAD)))
    assert scalars(events, "train/examples") == [(step, 2.0**53) for step in range(11)]
    assert scalars(events, "val/acc") == [(0, 0.75)]
    assert scalars(events, "train/loss_partial") == [(10, 10.0)]
    assert scalars(events, "val/acc_partial") == [(1, 0.375)]


def test_delivery_appends_pending_media_to_the_event_file(runs: Path) -> None:
    metricbus.deliver(runs / "killed")
    events = read_events(event_file(runs / "killed"))
    histograms = [(event.step, event.histogram_value.sum) for event in events.Histograms("weights")]
    assert histograms == [(0, 6.0), (7, 12.0)]
    images = [(event.step, event.width, event.height) for event in events.Images("sample")]
    assert images == [(2, 2, 2), (9, 2, 2)]
    assert [event.step for event in events.Tensors("errors")] == [1, 7, 9]
    (text,) = events.Tensors("notes")
    assert text.tensor_proto.string_val == [b"# First try"]


def test_delivering_twice_repeats_nothing(runs: Path) -> None:
    metricbus.deliver(runs / "killed")
    files = [runs / "killed" / "csv" / "metrics.csv", event_file(runs / "killed")]
    before = [file.read_bytes() for file in files]
    metricbus.deliver(runs / "killed")
    assert [file.read_bytes() for file in files] == before


def test_delivering_the_finished_run_changes_nothing(runs: Path) -> None:
    file = runs / "finished" / "csv" / "metrics.csv"
    before = file.read_bytes()
    counts = metricbus.deliver(runs / "finished")
    assert (counts["csv"].delivered, counts["csv"].pending) == (7, 0)
    assert file.read_bytes() == before


def test_the_killed_run_is_delivered_to_a_new_sink(runs: Path, tmp_path: Path) -> None:
    (counts,) = metricbus.deliver(runs / "killed", "csv:elsewhere").values()
    assert (counts.delivered, counts.pending) == (37, 0)
    rows = read_rows(tmp_path / "elsewhere" / "killed" / "metrics.csv")
    text = CSV_DELIVERED + CSV_PENDING + CSV_PARTIAL
    assert rows == parse_rows(text.replace("../media/", "media/"))


def test_the_finished_run_is_delivered_to_a_new_sink(runs: Path) -> None:
    (counts,) = metricbus.deliver(runs / "finished", "tensorboard").values()
    assert (counts.delivered, counts.pending) == (7, 0)
    events = read_events(event_file(runs / "finished"))
    assert scalars(events, "train/examples") == [(0, 64.0), (1, 128.0), (2, 192.0)]
    assert scalars(events, "train/loss")[:2] == [(0, 1.0), (1, 0.5)]


# Resuming


@pytest.mark.parametrize("load", [json_checkpoint, pickle_checkpoint, torch_checkpoint])
def test_step_and_epoch_continue_from_the_checkpoint(
    runs: Path, load: Callable[[Path], dict[str, Any]]
) -> None:
    seen = []
    with resume(runs) as bus:
        bus.load_state_dict(load(runs))
        assert (bus.step, bus.epoch) == (7, 1)
        for epoch in bus.epochs(1):
            for _ in bus.steps(range(4)):
                seen.append((epoch, bus.step))
    assert seen == [(1, 8), (1, 9), (1, 10), (1, 11)]


@pytest.mark.parametrize("load", [json_checkpoint, pickle_checkpoint, torch_checkpoint])
def test_a_pending_window_continues_from_the_checkpoint(
    runs: Path, load: Callable[[Path], dict[str, Any]]
) -> None:
    """The window includes steps 6 and 7 of the old run, whose values are their step numbers."""
    resume_and_finish(runs, load)
    assert points(metricbus.read(runs / "killed"), "train/loss") == [
        (3, 0, 1.5),
        (5, 0, 4.5),
        (9, 1, (6 + 7 + 108 + 109) / 4),
        (11, 1, (110 + 111) / 2),
    ]


def test_an_epoch_mean_includes_values_logged_before_the_checkpoint(runs: Path) -> None:
    resume_and_finish(runs)
    assert points(metricbus.read(runs / "killed"), "val/acc") == [
        (5, 0, 0.75),
        (11, 1, (3 * 0.25 + 1.0) / 4),
    ]


def test_values_logged_after_the_checkpoint_are_superseded(runs: Path) -> None:
    resume_and_finish(runs)
    history = metricbus.read(runs / "killed")
    values = history.series("train/grad").value
    np.testing.assert_array_equal(values, [*GRAD[:8], -1.0, -1.0, -1.0, -1.0])
    assert history.series("train/examples").step.tolist() == list(range(8))
    assert [medium.step for medium in history.media("sample")] == [2]
    (table,) = history.tables("errors")
    assert table.rows == [[1, "cat"], [1, "=dog"], [7, "seal"]]
    assert history.partial == []


def test_superseded_values_stay_in_the_journal(runs: Path) -> None:
    resume_and_finish(runs)
    history = metricbus.read(runs / "killed", superseded=True)
    values = history.series("train/grad").value
    np.testing.assert_array_equal(values, [*GRAD, -1.0, -1.0, -1.0, -1.0])


def test_resuming_starts_another_attempt_of_the_same_run(runs: Path) -> None:
    bus = resume_and_finish(runs)
    assert bus.stats().complete
    assert bus.config == {"lr": 0.5, "optimizer": {"name": "adam"}}
    run = metricbus.read(runs / "killed").run
    assert (run.name, run.started) == ("digits", BEGAN)
    assert (run.attempt, run.status) == (2, "finished")


def test_the_resumed_run_continues_the_csv_file(runs: Path) -> None:
    file = runs / "killed" / "csv" / "metrics.csv"
    before = file.read_bytes()
    resume_and_finish(runs)
    assert file.read_bytes().startswith(before)
    old = parse_rows(CSV_DELIVERED + CSV_PENDING)
    rows = read_rows(file)
    assert rows[: len(old)] == old
    new = [
        [step, epoch, name, value, kind]
        for step, epoch, _, name, value, kind in rows[len(old) :]
        if name != "time/epoch"
    ]
    assert new == parse_rows(CSV_AFTER_RESUMING)


def test_the_resumed_run_continues_the_event_file(runs: Path) -> None:
    file = event_file(runs / "killed")
    before = file.read_bytes()
    resume_and_finish(runs)
    assert event_file(runs / "killed") == file
    assert file.read_bytes().startswith(before)
    events = read_events(file)
    assert scalars(events, "train/loss") == [(3, 1.5), (5, 4.5), (9, 57.5), (11, 110.5)]
    # The old version placed the results of epochs at the epoch, the current one at the step.
    assert scalars(events, "val/acc") == [(0, 0.75), (11, 0.4375)]
    grad = [*GRAD[:8], -1.0, -1.0, -1.0, -1.0]
    np.testing.assert_array_equal(scalars(events, "train/grad"), list(enumerate(grad)))
    assert [event.step for event in events.Histograms("weights")] == [0, 7]
    assert [event.step for event in events.Images("sample")] == [2]


def test_the_finished_run_can_be_resumed_by_name(runs: Path) -> None:
    with MetricBus("baseline", resume="must", dir=runs, sinks="csv", delivery="thread") as bus:
        bus.log("train/loss", 0.25, step=3)
    assert bus.dir == runs / "finished"
    history = metricbus.read(runs / "finished")
    assert points(history, "train/loss") == [
        (0, 0, 1.0),
        (1, 0, 0.5),
        (2, 0, 1 / 3),
        (3, 0, 0.25),
    ]
    steps = [row[0] for row in read_rows(runs / "finished" / "csv" / "metrics.csv")]
    assert steps == ["step", "0", "0", "1", "1", "2", "2", "2", "3"]
