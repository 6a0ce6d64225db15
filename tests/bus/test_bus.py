"""`MetricBus`: logging, settings, status and counts."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metricbus
from metricbus import (
    ClosedError,
    ConfigError,
    DeliveryError,
    MetricBus,
    Report,
    RunExistsError,
    ScalarRow,
    Sink,
)
from metricbus._common.settings import Overflow
from metricbus.testing import MemorySink


class RejectsAll(Sink):
    """A sink that rejects every record."""

    def write(self, records: object) -> None:
        raise metricbus.RecordsRejectedError("no")


def is_consistent(report: Report) -> bool:
    accounted = report.journalled + report.reduced + report.dropped + report.waiting
    return report.logged == accounted and all(
        report.journalled == sink.delivered + sink.rejected + sink.filtered + sink.pending
        for sink in report.sinks.values()
    )


def test_default_sinks_are_logging_and_csv() -> None:
    with MetricBus() as bus:
        bus.log("loss", 1.0)
    assert list(bus.stats().sinks) == ["logging", "csv"]
    assert bus.dir is not None
    assert (bus.dir / "csv" / "metrics.csv").exists()
    assert bus.dir.parent == Path("runs").absolute()


def test_logs_names_and_nested_mappings(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("a", 1.0)
        bus.log({"b": 2.0, "c": {"d": 3}})
    assert sink.records[0].values == {"a": 1.0, "b": 2.0, "c/d": 3}
    assert bus.last("c/d") == 3
    assert bus.last("nothing") is None


def test_calls_of_one_step_share_a_row_until_a_name_repeats(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log("a", 1.0, step=0)
        bus.log({"b": 2.0}, step=0)
        bus.log("a", 3.0, step=0)
        bus.log("b", 4.0, step=1)
    rows = [(record.step, record.values) for record in sink.records]
    assert rows == [(0, {"a": 1.0, "b": 2.0}), (0, {"a": 3.0}), (1, {"b": 4.0})]


def test_later_changes_of_a_logged_object_have_no_effect(tmp_path: Path) -> None:
    sink = MemorySink()
    array, tensor = np.array([1.0]), torch.tensor(1.0)
    row = {"dict": 1.0}
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.log({"array": array, "tensor": tensor})
        bus.log(row)
        array[0] = 2.0
        tensor.fill_(2.0)
        row["dict"] = 2.0
    assert sink.records[0].values == {"array": 1.0, "tensor": 1.0, "dict": 1.0}


def test_scope_prefixes_names_and_shares_the_rest(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        seen = bus.scope("val").scope("seen")
        seen.log("acc", 0.5)
        seen.log({"loss": {"ce": 1.0}}, step=3, epoch=1)
        assert seen.last("acc") == 0.5
        assert seen.step == bus.step == 3
        assert seen.flush().logged == 2
        with pytest.raises(TypeError, match="has no value"):
            seen.log("acc")
    assert sink.names() == ["val/seen/acc", "val/seen/loss/ce"]


def test_run_is_an_alias_of_name(tmp_path: Path) -> None:
    with MetricBus(run="digits", sinks="", dir=tmp_path) as bus:
        assert bus.run is not None
        assert bus.run.name == "digits"


def test_two_names_are_an_error_that_shows_both() -> None:
    with pytest.raises(TypeError, match=r"both name='a' and run='b'"):
        MetricBus("a", run="b")


def test_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'sink'"):
        MetricBus(sink="csv")  # type: ignore[call-arg]


def test_wrong_type_of_the_name_is_reported_under_the_name_of_the_argument() -> None:
    with pytest.raises(ConfigError, match="name=3"):
        MetricBus(3)  # type: ignore[arg-type]


def test_dir_is_the_folder_of_the_run_in_the_folder_given(tmp_path: Path) -> None:
    with MetricBus(id="digits-1", sinks="", dir=tmp_path) as bus:
        assert bus.dir == bus.folder == tmp_path / "digits-1"
    assert MetricBus(disabled=True, dir=tmp_path).dir is None


def test_run_json_describes_the_run(tmp_path: Path) -> None:
    with MetricBus(
        name="My Run!",
        id="my-id",
        project="p",
        config={"lr": 0.1, "path": Path("x"), "bad": math.inf, "n": {"a": np.float32(0.5)}},
        tags=["a", "b"],
        group="g",
        notes="n",
        sinks="csv",
        dir=tmp_path,
    ) as bus:
        assert bus.config["lr"] == 0.1
        with pytest.raises(TypeError):
            bus.config["lr"] = 1  # type: ignore[index]
    about = json.loads((tmp_path / "my-id" / "run.json").read_text())
    expected = {
        "id": "my-id",
        "name": "My Run!",
        "project": "p",
        "config": {"lr": 0.1, "path": "x", "bad": "inf", "n": {"a": 0.5}},
        "tags": ["a", "b"],
        "group": "g",
        "notes": "n",
        "sinks": ["csv"],
        "status": "finished",
    }
    assert {key: about[key] for key in expected} == expected
    assert about["ended"] >= about["started"]


def test_generated_id_contains_the_name_and_is_unique(tmp_path: Path) -> None:
    ids = set()
    for _ in range(3):
        with MetricBus(name="Digits CNN / v2", sinks="", dir=tmp_path) as bus:
            assert bus.run is not None
            assert bus.run.id.startswith("digits-cnn-v2-20")
            ids.add(bus.run.id)
    assert len(ids) == 3


def test_second_bus_with_the_same_id_raises(tmp_path: Path) -> None:
    with (
        MetricBus(id="one", sinks="", dir=tmp_path),
        pytest.raises(
            RunExistsError,
            match=r"already has a run with the id 'one'.*omit id= and METRICBUS_RUN_ID",
        ),
    ):
        MetricBus(id="one", sinks="", dir=tmp_path)


@pytest.mark.parametrize("id", ["../x", "a/b", "", ".hidden", "a b", "x" * 300])
def test_id_that_cannot_name_a_folder_raises(tmp_path: Path, id: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid folder name"):
        MetricBus(id=id, sinks="", dir=tmp_path)


def test_error_for_tags_given_as_a_string_shows_the_correct_call(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"tags=\['abc'\]"):
        MetricBus(tags="abc", sinks="", dir=tmp_path)


def test_two_buses_can_be_open_at_once(tmp_path: Path) -> None:
    sinks = MemorySink(), MemorySink()
    with (
        MetricBus(sinks=[sinks[0]], dir=tmp_path) as one,
        MetricBus(sinks=[sinks[1]], dir=tmp_path) as two,
    ):
        one.log("x", 1.0)
        two.log("x", 2.0)
        assert one.dir != two.dir
    assert [sink.series("x")[0].value for sink in sinks] == [1.0, 2.0]


def test_exception_in_the_block_fails_the_run_and_propagates(tmp_path: Path) -> None:
    sink = MemorySink()
    error = ZeroDivisionError("untouched")
    with (
        pytest.raises(ZeroDivisionError) as caught,
        MetricBus(id="r", sinks=[sink], dir=tmp_path) as bus,
    ):
        bus.log("x", 1.0)
        raise error
    assert caught.value is error
    assert sink.status == "failed"
    assert json.loads((tmp_path / "r" / "run.json").read_text())["status"] == "failed"
    assert sink.series("x")


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "killed"), (SystemExit(0), "finished"), (SystemExit(3), "failed")],
)
def test_exception_in_the_block_determines_the_status(
    tmp_path: Path, error: BaseException, status: str
) -> None:
    sink = MemorySink()
    with pytest.raises(type(error)), MetricBus(sinks=[sink], dir=tmp_path):
        raise error
    assert sink.status == status


def test_exception_in_the_block_takes_precedence_over_strict(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        MetricBus(sinks=[RejectsAll()], dir=tmp_path, strict=True) as bus,
    ):
        bus.log("x", 1.0)
        raise ZeroDivisionError


def test_strict_close_raises_with_the_report(tmp_path: Path) -> None:
    bus = MetricBus(sinks=[RejectsAll()], dir=tmp_path, strict=True)
    bus.log("x", 1.0)
    with pytest.raises(DeliveryError, match="rejected 1") as caught:
        bus.close()
    assert caught.value.report.sinks["RejectsAll"].rejected == 1


def test_logging_after_close_is_counted_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MetricBus(sinks="csv", dir=tmp_path)
    bus.log("x", 1.0)
    bus.close()
    for _ in range(3):
        bus.log("x", 2.0)
    bus.log({"a": 1.0, "b": 2.0})
    report = bus.close()
    assert (report.journalled, report.dropped) == (1, 5)
    assert is_consistent(report)
    assert sum("after close()" in record.message for record in caplog.records) == 1


def test_logging_after_close_raises_under_strict(tmp_path: Path) -> None:
    bus = MetricBus(sinks="", dir=tmp_path, strict=True)
    bus.close()
    with pytest.raises(ClosedError):
        bus.log("x", 1.0)


def test_closing_again_changes_nothing(tmp_path: Path) -> None:
    sink = MemorySink()
    bus = MetricBus(sinks=[sink], dir=tmp_path)
    bus.log("x", 1.0)
    first = bus.close("failed")
    assert bus.close("finished") == first
    assert bus.flush() == first
    assert sink.status == "failed"


def test_unknown_status_raises(tmp_path: Path) -> None:
    bus = MetricBus(sinks="", dir=tmp_path)
    with pytest.raises(ValueError, match="'great'"):
        bus.close("great")  # type: ignore[arg-type]


def test_flush_delivers_everything_to_every_sink(tmp_path: Path) -> None:
    sinks = [MemorySink(), MemorySink()]
    with MetricBus(sinks=sinks, dir=tmp_path, flush_secs=60) as bus:
        for step in range(5000):
            bus.log("x", float(step), step=step)
        report = bus.flush()
        assert [len(sink.records) for sink in sinks] == [5000, 5000]
        assert report.logged == report.journalled == 5000
        assert [counts.delivered for counts in report.sinks.values()] == [5000, 5000]


def test_flush_steps_writes_the_journal_early(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path, flush_secs=3600, flush_steps=10) as bus:
        seen = threading.Event()
        for step in bus.steps(range(12)):
            bus.log("x", float(step))
        for _ in range(1000):
            if len(sink.records) >= 10 or seen.wait(0.01):
                break
        assert len(sink.records) >= 10


def test_16_threads_lose_no_values(tmp_path: Path) -> None:
    sink = MemorySink()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with MetricBus(sinks=[sink, "csv"], dir=tmp_path) as bus:

            def work(worker: int) -> None:
                for i in range(500):
                    bus.log(f"worker/{worker}", float(i), step=i)
                    bus.log({"shared": float(i), f"also/{worker}": i}, step=i)

            threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    report = bus.stats()
    assert report.logged == report.journalled == 16 * 500 * 3
    assert is_consistent(report)
    assert report.complete
    for worker in range(16):
        assert [point.value for point in sink.series(f"worker/{worker}")] == list(range(500))
    assert len(sink.series("shared")) == 16 * 500


@pytest.mark.parametrize("overflow", ["drop_newest", "drop_oldest"])
def test_counts_add_up_when_the_queue_is_too_small(tmp_path: Path, overflow: Overflow) -> None:
    with MetricBus(sinks="csv", dir=tmp_path, queue_size=10, overflow=overflow) as bus:
        for step in range(5000):
            bus.log("x", 1.0, step=step)
            bus.log({"a": 1.0, "b": 2.0}, step=step)
    report = bus.stats()
    assert report.logged == 15_000
    assert report.dropped > 0
    assert is_consistent(report)


def test_blocking_queue_that_is_too_small_loses_nothing(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path, queue_size=10, block_secs=30) as bus:
        for step in range(5000):
            bus.log("x", 1.0, step=step)
    assert bus.stats().journalled == 5000
    assert bus.stats().complete


def test_mapping_with_one_bad_value_logs_nothing(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        with pytest.raises(TypeError, match="'b'"):
            bus.log({"a": 1.0, "b": "text", "c": 2.0})
        with pytest.raises(ValueError, match="empty"):
            bus.log({"a": 1.0, "": 2.0})
        with pytest.raises(TypeError, match="must be a string"):
            bus.log({"a": 1.0, 3: 2.0})  # type: ignore[dict-item]
        assert bus.last("a") is None
        bus.log({})
    assert sink.records == []
    assert bus.stats().logged == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("x",), "has no value"),
        (({"x": 1.0}, 2.0), "only a mapping"),
        ((3, 1.0), "must be a string"),
        (([("x", 1.0)],), "must be a string"),
        ((None,), "must be a string"),
    ],
)
def test_incorrect_call_raises_an_explanation(
    tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus, pytest.raises(TypeError, match=words):
        bus.log(*arguments)  # type: ignore[call-overload]


def test_error_is_raised_at_the_callers_line(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        with pytest.raises(TypeError) as caught:
            bus.log("x", "text")  # THE LINE
        assert "THE LINE" in str(caught.traceback[0].statement)


@pytest.mark.parametrize("dir", ["/proc/nowhere", "file/runs", "file"])
def test_folder_that_cannot_be_created_raises(dir: str) -> None:
    Path("file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"(cannot create|is not a folder).*METRICBUS_DIR"):
        MetricBus(sinks="", dir=dir)


def test_missing_folders_are_created(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path / "a" / "b") as bus:
        assert bus.dir is not None
        assert bus.dir.parent == tmp_path / "a" / "b"


@pytest.mark.parametrize(
    ("sinks", "words"),
    [
        ("tensorbord", r"unknown sink 'tensorbord'; did you mean 'tensorboard'\?"),
        ("csv?evry=3", r"no option 'evry'; did you mean 'every'\?"),
        ("csv?every=0", "option 'every'.*expected int"),
        ("csv?every=2&every=3", "twice"),
        ("csv?flush_secs=soon", "option 'flush_secs'"),
        ("logging?level=LOUD", r"option 'level'.*DEBUG \| INFO"),
        ("csv,csv", "listed twice"),
        ("csv?include=a,csv?include=b", "write to the same location; .*csv:elsewhere"),
        (["csv", 3], "not 3"),
        (3, "not 3"),
        ([MemorySink], "sink objects such as MemorySink"),
        ("aim+http://me:hunter2@host", "unknown sink 'aim'"),
    ],
)
def test_bad_sink_raises_when_the_bus_is_created(tmp_path: Path, sinks: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        MetricBus(sinks=sinks, dir=tmp_path)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.glob("run-*")) == []


def test_error_for_missing_package_shows_the_pip_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    monkeypatch.setattr("metricbus.sinks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'metricbus\[tensorboard\]'"):
        MetricBus(sinks="tensorboard", dir=tmp_path)


def test_bus_disabled_by_the_environment_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_DISABLED", "1")
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for _ in bus.epochs(1):
            for _ in bus.steps(range(3)):
                bus.log("x", 1.0)
        assert bus.flush() == Report()
        assert (bus.step, bus.run, bus.dir) == (2, None, None)
    assert list(tmp_path.iterdir()) == []


def test_sink_url_has_filters(tmp_path: Path) -> None:
    with MetricBus(
        sinks="csv?include=train/*&exclude=*/lr&every=2", dir=tmp_path, batch_size=3
    ) as bus:
        for step in range(5):
            bus.log({"train/loss": float(step), "train/lr": 0.1, "val/acc": 0.5}, step=step)
    counts = next(iter(bus.stats().sinks.values()))
    assert (counts.delivered, counts.filtered, counts.pending) == (3, 12, 0)
    assert bus.dir is not None
    lines = (bus.dir / "csv" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "2", "4"]


def test_records_are_immutable() -> None:
    row = ScalarRow(step=0, epoch=0, time=0, values={})
    with pytest.raises(AttributeError):
        row.step = 1  # type: ignore[misc]


def test_report_has_a_readable_form(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert str(bus.stats()) == (
        "logged 1 = journalled 1 + reduced 0 + dropped 0 + waiting 0\n"
        "csv: delivered 1, rejected 0, filtered 0, pending 0"
    )


def test_logging_sink_is_visible_without_logging_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with MetricBus(sinks="logging", dir=tmp_path) as bus:
        bus.log("loss", 0.25, step=7)
    assert "step 7 epoch 0 | loss=0.25" in capsys.readouterr().err


@pytest.mark.parametrize("config", [{"a": {"b": 1}, "a/b": 2}, {1: "x", "1": "y"}])
def test_config_with_a_duplicate_name_raises(tmp_path: Path, config: dict[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="twice"):
        MetricBus(sinks="", dir=tmp_path, config=config)


def test_config_accepts_an_integer_beyond_floats(tmp_path: Path) -> None:
    with MetricBus(sinks="tensorboard", dir=tmp_path, config={"n": 10**400}) as bus:
        bus.log("x", 1.0)
    assert bus.stats().complete


def test_reduced_values_are_not_partial(tmp_path: Path) -> None:
    sink = MemorySink()
    with MetricBus(sinks=[sink], dir=tmp_path) as bus:
        bus.define("x", every=2, reduce="mean", on_epoch=True)
        for _ in bus.epochs(2):
            for _ in bus.steps(range(4)):
                bus.log("x", 1.0)
    assert len(sink.series("x")) == 4
    assert len(sink.series("x_epoch")) == 2
    assert not any(row.partial for row in sink.records)


def test_integers_are_logged_in_every_form_of_the_call(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
        bus.log({"x": 2})
        bus.log("x", 3, epoch=0)
        bus.log({"x": 4}, weight=2)
    assert bus.dir is not None
    values = metricbus.read(bus.dir).series("x").value
    assert values.tolist() == [1, 2, 3, 4]
    assert values.dtype.kind == "i"


def test_counts_never_decrease(tmp_path: Path) -> None:
    reports = []
    with MetricBus(sinks="", dir=tmp_path, flush_secs=0.001) as bus:
        for step in range(3000):
            bus.log("x", 1.0, step=step)
            if step % 10 == 0:
                reports.append(bus.stats())
        reports.append(bus.flush())
    for name in ("logged", "journalled"):
        counts = [getattr(report, name) for report in reports]
        assert counts == sorted(counts)
        assert counts[-1] == 3000


def test_run_has_its_final_status_after_close(tmp_path: Path) -> None:
    bus = MetricBus(sinks="", dir=tmp_path)
    assert bus.run is not None
    assert (bus.run.status, bus.run.ended) == ("running", None)
    bus.close("failed")
    assert bus.run.status == "failed"
    assert bus.run.ended is not None
    assert bus.dir is not None
    assert metricbus.read(bus.dir).run == bus.run


def test_reports_and_series_have_a_short_repr(tmp_path: Path) -> None:
    with MetricBus(sinks="csv", dir=tmp_path) as bus:
        for step in range(1000):
            bus.log("x", step / 8, step=step)
    assert repr(bus.stats()) == (
        "<Report: logged 1,000 = journalled 1,000 + reduced 0 + dropped 0 + waiting 0; "
        "csv: delivered 1,000, rejected 0, filtered 0, pending 0>"
    )
    assert bus.dir is not None
    history = metricbus.read(bus.dir)
    assert repr(history.series("x")) == "<Series of 1,000 values at steps 0 to 999, last 124.875>"


def test_warns_that_counts_rely_on_the_gil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    MetricBus(sinks="", dir=tmp_path).close()
    assert "Python runs without the GIL" in caplog.text
    assert "PYTHON_GIL=1" in caplog.text
