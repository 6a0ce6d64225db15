"""The MLflow sink, verified with MlflowClient on SQLite files and on a real server."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.utils.validation import _validate_metric_name

from metricbus import BackendUnavailableError, ConfigError, MetricBus, ScalarRow
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.consumer import Consumer
from metricbus._delivery.sink_specs import spec_of
from metricbus._journal.run import RunFolder, create_run
from metricbus._journal.segment_writer import SegmentWriter
from metricbus.sinks.mlflow.metric_names import (
    METRIC_NAME_TAG,
    KeyMapper,
    MetricIdentity,
    TimestampAllocator,
    valid_key,
)
from metricbus.sinks.mlflow.sink import MlflowSink
from metricbus.sinks.mlflow.store import in_batches
from tests.helpers.limits import HANG_SECS


@pytest.fixture
def url(database: Path, request: pytest.FixtureRequest) -> str:
    """Return a sink URL with a separate experiment in the shared database."""
    return f"mlflow:{database}?experiment={request.node.name}"


def runs_of(uri: str, experiment: str) -> list[MlflowRun]:
    client = MlflowClient(uri)
    existing = client.get_experiment_by_name(experiment)
    return list(client.search_runs([existing.experiment_id])) if existing else []


def run_of(bus: MetricBus) -> tuple[MlflowClient, MlflowRun]:
    """Return the MLflow run of a bus, and check its tag with our run id."""
    assert bus.run is not None
    (sink,) = (counts for name, counts in bus.stats().sinks.items() if name.startswith("mlflow"))
    uri, _, run_id = sink.where.partition(", run ")
    if not run_id:
        uri, run_id = sink.where.partition("/#/")[0], sink.where.rpartition("/")[2]
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.data.tags["metricbus.run_id"] == bus.run.id
    return client, run


# The run


def test_run_has_config_tags_notes_and_name(url: str, tmp_path: Path) -> None:
    config = {"lr": 0.1, "optimizer": {"name": "adam", "betas": [0.9, 0.99]}, "none": None}
    with MetricBus(
        "named", sinks=url, dir=tmp_path, config=config, tags=["base"], notes="n"
    ) as bus:
        bus.log("x", 1.0)
    _, run = run_of(bus)
    assert run.data.params == {
        "lr": "0.1",
        "optimizer/name": "adam",
        "optimizer/betas": "[0.9, 0.99]",
        "none": "null",
    }
    assert (run.info.run_name, run.info.status) == ("named", "FINISHED")
    assert run.data.tags.items() >= {"base": "true", "mlflow.note.content": "n"}.items()
    assert bus.run is not None
    assert run.info.start_time == bus.run.started // 1_000_000


def test_changed_param_keeps_its_value_and_a_tag_has_the_new_one(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"lr": 0.5, "a@b": 1}
    with MetricBus(sinks=url, dir=tmp_path, config=config, delivery="thread") as bus:
        bus.log("x", 1.0)
        bus.flush()
        for _ in range(3):
            bus.config.update({"lr": 0.25, "a@b": 2, "c@d": 3})
            bus.flush()
    _, run = run_of(bus)
    assert run.data.params == {"lr": "0.5", "a_b": "1", "c_d": "3"}
    tags = run.data.tags
    assert (tags["metricbus.value.lr"], tags["metricbus.value.a_b"]) == ("0.25", "2")
    assert tags["metricbus.param.c_d"] == "c@d"
    assert caplog.text.count("'lr' stays 0.5, although the config now has 0.25") == 1


def test_final_value_is_the_newest_of_its_metric(url: str, tmp_path: Path) -> None:
    with MetricBus(sinks=url, dir=tmp_path) as bus:
        for value in (0.75, 0.5, 0.25):
            bus.summarize("test/acc@1", value)
        bus.flush()
        bus.summarize("test/acc@1", 0.125)
    _, run = run_of(bus)
    assert run.data.metrics == {"summary/test/acc_1": 0.125}
    assert run.data.tags["metricbus.name.summary/test/acc_1"] == "summary/test/acc@1"


def test_long_params_and_tags_are_cut_with_a_warning(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config: dict[str, Any] = {f"p{i}": i for i in range(250)}
    config |= {"long": "ü" * 7000, "k" * 300: 1, "a@b": 2, "a_b": 3}
    with MetricBus(sinks=url, dir=tmp_path, config=config, notes="n" * 9000) as bus:
        bus.log("x", 1.0)
    _, run = run_of(bus)
    assert len(run.data.params) == len(config)
    assert run.data.params["long"] == "ü" * 5999 + "…"
    assert {run.data.params["a_b"], run.data.params[valid_key("a@b")]} <= {"2", "3"}
    assert "metricbus.param.a_b" in run.data.tags
    assert len(run.data.tags["mlflow.note.content"]) == 8000
    assert "param 'long' is cut from 7,000 characters to 6,000, MLflow's limit" in caplog.text
    assert "tag 'mlflow.note.content' is cut to 8000 characters" in caplog.text


def test_run_has_the_final_status_of_the_training(url: str, tmp_path: Path) -> None:
    failed = MetricBus(sinks=url, dir=tmp_path)
    with pytest.raises(ZeroDivisionError), failed:
        failed.log("x", 1 / 0)
    killed = MetricBus(sinks=url, dir=tmp_path)
    with pytest.raises(KeyboardInterrupt), killed:
        raise KeyboardInterrupt
    assert [run_of(bus)[1].info.status for bus in (failed, killed)] == ["FAILED", "KILLED"]


def test_without_a_location_runs_share_a_database_next_to_their_folders(tmp_path: Path) -> None:
    for id in ("one", "two"):
        with MetricBus(id=id, sinks="mlflow", dir=tmp_path / "runs", project="mine") as bus:
            bus.log("x", 1.0)
        command = bus.stats().sinks["mlflow"].command
        assert command == f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/runs/mlflow.db"
    runs = runs_of(f"sqlite:///{tmp_path}/runs/mlflow.db", "mine")
    assert {run.data.tags["metricbus.run_id"] for run in runs} == {"one", "two"}
    assert all(run.info.artifact_uri.startswith(f"file://{tmp_path}/runs") for run in runs)


def test_mlflow_environment_variables_are_used(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    with MetricBus(sinks="mlflow", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert len(runs_of(f"sqlite:///{database}", "from the environment")) == 1
    assert not (tmp_path / "mlflow.db").exists()


def test_does_not_affect_how_the_script_uses_mlflow(url: str, tmp_path: Path) -> None:
    before = mlflow.get_tracking_uri(), dict(os.environ)
    with MetricBus(sinks=url, dir=tmp_path) as bus:
        variable = os.environ.pop("METRICBUS_RUN_DIR")
        bus.log("x", 1.0)
        bus.flush()
        assert mlflow.active_run() is None
        assert (mlflow.get_tracking_uri(), dict(os.environ)) == before
        os.environ["METRICBUS_RUN_DIR"] = variable


def test_warning_about_a_deleted_experiment_names_the_restore_command(
    database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    bus = MetricBus(sinks=f"mlflow:{database}?experiment=gone", dir=tmp_path)
    bus.log("x", 1.0)
    bus.close(timeout=2)
    assert f"mlflow experiments restore --experiment-id {experiment}" in caplog.text
    client.restore_experiment(experiment)


def test_processes_can_create_the_same_database_at_once(tmp_path: Path) -> None:
    code = """
        import sys
        from metricbus import MetricBus
        bus = MetricBus(id=sys.argv[1], sinks="mlflow", project="p", dir="runs")
        bus.log("x", 1.0)
        bus.close(timeout=float(sys.argv[2]))
        sys.exit(not bus.stats().complete)
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), f"r{i}", str(HANG_SECS)], cwd=tmp_path
        )
        for i in range(4)
    ]
    assert [process.wait(HANG_SECS) for process in processes] == [0] * 4
    assert len(runs_of(f"sqlite:///{tmp_path}/runs/mlflow.db", "p")) == 4


# Metrics


def test_metrics_are_batched(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    log_batch = MlflowClient.log_batch

    def counting(self: MlflowClient, run_id: str, metrics: Sequence[Any] = (), **rest: Any) -> None:
        if metrics:
            sizes.append(len(metrics))
        log_batch(self, run_id, metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    folder, run = create_run(tmp_path, id="r", name="r", config={})
    writer = SegmentWriter(folder.journal, run.id)
    rows = [
        ScalarRow(step=step, epoch=0, time=step * 10**9, values={f"m{i}": 0.5 for i in range(20)})
        for step in range(600)
    ]
    writer.append(rows)
    writer.close()
    deliver(folder, url)
    assert sum(sizes) == 12_000
    assert len(sizes) <= 13


@given(st.lists(st.integers(1, 500_000), max_size=40), st.integers(1, 10))
def test_batches_stay_within_both_limits(sizes: list[int], max_items: int) -> None:
    batches = list(in_batches(sizes, max_items, lambda size: size))
    assert [size for batch in batches for size in batch] == sizes
    assert all(batch and len(batch) <= max_items and sum(batch) <= 1_000_000 for batch in batches)


def test_many_long_names_fit_into_a_servers_requests(mlflow_server: str, tmp_path: Path) -> None:
    url = f"mlflow+{mlflow_server}?experiment=long"
    with MetricBus(sinks=url, dir=tmp_path) as bus:
        for step in range(3):
            bus.log({f"{'ü' * 200}{i}": i for i in range(1000)}, step=step)
    assert bus.stats().complete, str(bus.stats())
    client, run = run_of(bus)
    assert len(run.data.metrics) == 1000
    assert len(client.get_metric_history(run.info.run_id, "ü" * 200 + "7")) == 3


def test_equal_values_in_one_millisecond_are_all_kept(url: str, tmp_path: Path) -> None:
    with MetricBus(sinks=url, dir=tmp_path) as bus:
        for _ in range(500):
            bus.log("same", 1.0, step=0)
    client, run = run_of(bus)
    assert len(client.get_metric_history(run.info.run_id, "same")) == 500


def test_only_the_value_that_mlflow_refuses_is_rejected(url: str, tmp_path: Path) -> None:
    folder, run = create_run(tmp_path, id="r", name="r", config={})
    writer = SegmentWriter(folder.journal, run.id)
    for step in range(10):
        before_1970 = -(10**9) if step == 4 else step
        writer.append([ScalarRow(step=step, epoch=0, time=before_1970, values={"x": 1.0})])
    writer.close()
    consumer = deliver(folder, url)
    assert (consumer.tally().delivered, consumer.tally().rejected) == (9, 1)
    assert "Timestamp must be a nonnegative long" in str(consumer.tally().error)


def test_infinity_warns_once(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with MetricBus(sinks=url, dir=tmp_path) as bus:
        for step in range(20):
            bus.log("x", math.inf, step=step)
    assert caplog.text.count("MLflow stores infinities as the largest float") == 1


# Repeated delivery


def deliver(folder: RunFolder, url: str) -> Consumer:
    consumer = Consumer(folder, spec_of(parse_sink(url)))
    consumer.end("finished")
    consumer.run()
    return consumer


def history(uri: str, experiment: str) -> Counter[tuple[str, int, int, float]]:
    client = MlflowClient(uri)
    (run,) = runs_of(uri, experiment)
    return Counter(
        (key, metric.step, metric.timestamp, metric.value)
        for key in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, key)
    )


@pytest.mark.parametrize("backend", ["file", "server"])
def test_repeated_delivery_duplicates_nothing(
    backend: str, database: Path, mlflow_server: str, tmp_path: Path
) -> None:
    with MetricBus(sinks="", id="r", dir=tmp_path, config={"lr": 0.1}) as bus:
        for step in range(300):
            bus.log("x", float(step), step=step)
            bus.log("same", 1.0, step=0)
            bus.log("mean@1", 1.0)
            bus.log("mean_1", 2.0)
    uri = f"sqlite:///{database}" if backend == "file" else mlflow_server
    url = f"mlflow+{uri}?experiment=again&batch_size=70"
    folder = RunFolder(tmp_path / "r")
    deliver(folder, url)
    once = history(uri, "again")
    for offsets_file in folder.offsets.glob("mlflow-*"):
        offsets_file.unlink()
    deliver(folder, url)
    assert history(uri, "again") == once
    assert sum(once.values()) == 1200


def test_keys_stay_the_same_when_a_run_is_resumed(database: Path, tmp_path: Path) -> None:
    url = f"mlflow:{database}?experiment=resumed"
    folder, run = create_run(tmp_path, id="r", name="r", config={})
    for name in ("mean_1", "mean@1", "mean_1", "mean@1"):
        writer = SegmentWriter(folder.journal, run.id)
        writer.append([ScalarRow(step=0, epoch=0, time=10**9, values={name: len(name) / 3})])
        writer.close()
        deliver(folder, url)
    uri = f"sqlite:///{database}"
    (mlflow_run,) = runs_of(uri, "resumed")
    hashed = KeyMapper({"mean_1": "mean_1"}).key("mean@1")
    assert mlflow_run.data.metrics.keys() == {"mean_1", hashed}
    assert sum(history(uri, "resumed").values()) == 4


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(st.lists(NAMES | st.sampled_from(["a@b", "a_b", "a(b", "a//b", "a/_/b", "..", "/"])))
def test_every_name_has_a_distinct_valid_key(names: list[str]) -> None:
    mapper = KeyMapper({})
    keys = {name: mapper.key(name) for name in names}
    assert len(set(keys.values())) == len(keys)
    for name, key in keys.items():
        _validate_metric_name(METRIC_NAME_TAG + key)  # type: ignore[no-untyped-call]
        _validate_metric_name(key)  # type: ignore[no-untyped-call]
        assert mapper.key(name) == key
        assert len(METRIC_NAME_TAG + key) <= 250


@pytest.mark.parametrize("name", ["train/loss", "val.acc", "a b", "déjà-vu", "x:y", "_step"])
def test_valid_names_are_unchanged(name: str) -> None:
    assert valid_key(name) == name


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=30), st.randoms())
def test_timestamps_do_not_depend_on_the_order_of_equal_values(
    values: list[tuple[str, int]], random: Any
) -> None:
    def allocate(values: list[tuple[str, int]]) -> set[tuple[MetricIdentity, int]]:
        timestamps = TimestampAllocator([])
        return {((key, 0, 1.0), timestamps.allocate((key, 0, 1.0), ms)) for key, ms in values}

    allocated = allocate(values)
    assert len(allocated) == len(values)
    random.shuffle(values)
    assert allocate(values) == allocated


@given(st.lists(st.integers(0, 5), max_size=10), st.lists(st.integers(0, 5), max_size=10))
def test_rollback_frees_the_allocated_timestamps(written: list[int], failed: list[int]) -> None:
    timestamps = TimestampAllocator([])
    identity = ("x", 0, 1.0)
    for ms in written:
        timestamps.allocate(identity, ms)
    timestamps.commit()
    first = [timestamps.allocate(identity, ms) for ms in failed]
    timestamps.rollback()
    assert [timestamps.allocate(identity, ms) for ms in failed] == first


# Errors and outages


def test_a_file_that_is_not_a_database_does_not_affect_other_sinks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes.txt").write_text("these are my notes, dear reader")
    bus = MetricBus(sinks=f"csv,mlflow:{tmp_path}/notes.txt", dir=tmp_path)
    bus.log("x", 1.0)
    report = bus.close(timeout=2)
    assert report is not None
    assert report.sinks["csv"].delivered == 1
    message = "notes.txt is not an SQLite database; choose another file with mlflow:FILE.db"
    assert f"{tmp_path}/{message}" in caplog.text
    assert (tmp_path / "notes.txt").read_text() == "these are my notes, dear reader"


class Forwarder:
    """Forwards connections to the server after `start()`, or accepts them without answering."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._unanswered: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def start(self, *, is_answering: bool = True) -> None:
        self._listener.listen()
        threading.Thread(target=self._accept, args=(is_answering,), daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # if it was never started
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._unanswered:
            connection.close()

    def _accept(self, is_answering: bool) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if is_answering:
                server = socket.create_connection(self._target)
                for pair in ((connection, server), (server, connection)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()
            else:
                self._unanswered.append(connection)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with source, target:
            try:
                while data := source.recv(1 << 16):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass


@pytest.fixture
def forwarder(mlflow_server: str) -> Iterator[Forwarder]:
    forwarder = Forwarder(mlflow_server)
    yield forwarder
    forwarder.close()


def test_a_server_that_starts_later_receives_everything(
    forwarder: Forwarder,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    wait_for: Callable[[Callable[[], bool]], None],
) -> None:
    url = f"mlflow+http://127.0.0.1:{forwarder.port}?experiment=later"
    with MetricBus(sinks=url, dir=tmp_path) as bus:
        for step in range(100):
            bus.log("x", float(step), step=step)
        wait_for(lambda: bool(bus.stats().sinks[url].error))
        wait_for(lambda: bus.stats().sinks[url].pending == 100)
        forwarder.start()
    assert bus.stats().complete, str(bus.stats())
    assert "will retry" in caplog.text
    assert "delivery has recovered" in caplog.text
    client, run = run_of(bus)
    assert len(client.get_metric_history(run.info.run_id, "x")) == 100


@pytest.mark.usefixtures("stops_consumers")
def test_a_hanging_server_delays_neither_the_training_nor_its_end(
    forwarder: Forwarder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forwarder.start(is_answering=False)
    url = f"mlflow+http://127.0.0.1:{forwarder.port}?timeout_secs=1"
    bus = MetricBus(sinks=["csv", url], dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        for step in range(100):
            bus.log("x", float(step), step=step)
        started = time.monotonic()
        report = bus.close(timeout=6)
        elapsed = time.monotonic() - started
    assert report is not None
    assert (report.sinks["csv"].delivered, report.sinks[url].pending) == (100, 100)
    assert elapsed < 20
    assert "timed out" in str(report.sinks[url].error).lower()


def test_a_file_name_that_looks_like_a_server_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write mlflow\+http://127.0.0.1:5000"):
        MetricBus(sinks="mlflow://127.0.0.1:5000", dir=tmp_path)


def test_foreign_database_is_not_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE runs (id INTEGER)")
        database.commit()
    with MetricBus(sinks=f"mlflow:{file}", dir=tmp_path) as bus:
        bus.log("x", 1.0)
    assert "is another program's database, with the tables runs" in caplog.text
    with contextlib.closing(sqlite3.connect(file)) as database:
        tables = database.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("runs",)]
    assert bus.stats().sinks[f"mlflow:{file}"].pending == 1


def test_tags_that_collide_or_are_reserved_are_all_kept(url: str, tmp_path: Path) -> None:
    tags = ["a@b", "a#b", "mlflow.runName"]
    with MetricBus("mine", sinks=url, dir=tmp_path, tags=tags) as bus:
        bus.log("x", 1.0)
    _, run = run_of(bus)
    assert run.info.run_name == "mine"
    originals = [text for key, text in run.data.tags.items() if key.startswith("metricbus.tag.")]
    assert sorted(originals) == sorted(tags)


def test_original_name_is_stored_although_the_first_request_failed(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_tags = MlflowSink._log_tags
    failed: list[Any] = []

    def fail_once(self: MlflowSink, tags: Any) -> None:
        if tags and not failed:
            failed.append(tags)
            raise BackendUnavailableError("no answer")
        log_tags(self, tags)

    monkeypatch.setattr(MlflowSink, "_log_tags", fail_once)
    with MetricBus(sinks=url, dir=tmp_path) as bus:
        bus.log("mean@1", 1.0)
    _, run = run_of(bus)
    assert failed
    assert run.data.tags[f"{METRIC_NAME_TAG}mean_1"] == "mean@1"


@pytest.mark.parametrize("name", ["..a", "...", "../a", "a/../b"])
def test_names_that_look_like_paths_are_accepted(url: str, tmp_path: Path, name: str) -> None:
    with MetricBus(sinks=url, dir=tmp_path, config={name: 1}) as bus:
        bus.log(name, 1.0)
    assert bus.stats().sinks[url].delivered == 1
