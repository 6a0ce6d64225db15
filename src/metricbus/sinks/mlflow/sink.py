"""MLflow sink: metrics by `log_batch`, the config as params, media as artifacts.

MLflow stores a metric's key, value (float64), timestamp in milliseconds, and step. The step is the
only x axis, so for a name with another axis it holds the epoch or the latest value of the axis
series. Infinities are stored as the largest float, with one warning.

MLflow keeps one of several metrics that are equal in all four fields, which makes repeated delivery
safe. Different values that are equal by chance are moved apart by a millisecond. Names that MLflow
refuses are changed (`mean@1` to `mean_1`); the tag `metricbus.name.<new name>` has the original.

Without a location, the sink uses `MLFLOW_TRACKING_URI`; without that, an SQLite file `mlflow.db`
next to the run folders, for all runs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from metricbus._common.media_records import MEDIA_RECORD_TYPES, MediumRecord
from metricbus._common.records import Rewind, RunUpdate, ScalarRow, Status
from metricbus._common.sink_urls import redact
from metricbus._journal.run import Run
from metricbus.errors import ConfigError
from metricbus.sinks.base import Sink
from metricbus.sinks.mlflow import metric_names, store
from metricbus.sinks.mlflow.media import MediaUploader
from metricbus.sinks.mlflow.run_start import RUN_ID_TAG, new_params, new_tags, run_tags, summary_row

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, RunData, RunTag

_log = logging.getLogger("metricbus.sinks.mlflow")

_METRICS_PER_BATCH = 1000  # mlflow.utils.validation
_PARAMS_PER_BATCH = 100

_OVERHEAD = 160  # bytes of an item in a request besides its strings, rounded up generously
_REWIND_TAG = "metricbus.superseded_before."
_HOST_AND_PORT = re.compile(r"[^/:@]+:\d+(/.*)?")


class MlflowOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of the sink URL: the experiment's name, and the timeout of a request in seconds."""

    experiment: str | None = None
    timeout_secs: Annotated[int, msgspec.Meta(ge=1)] = 10


class MlflowSink(Sink):
    """Logs to MLflow: `mlflow:FILE.db` is an SQLite file, `mlflow+http://HOST:5000` a server."""

    Options = MlflowOptions
    options: MlflowOptions
    kinds = (ScalarRow, Rewind, RunUpdate, *MEDIA_RECORD_TYPES)
    process = "delivery"
    dedup = "content"
    requires = ("mlflow",)
    install = "pip install 'metricbus[mlflow]'"

    def __init__(self, location: str = "", options: Any = None) -> None:
        if _HOST_AND_PORT.fullmatch(location):
            raise ConfigError(
                f"mlflow:{location} names a file; for a server, write mlflow+http://{location}"
            )
        if location and "://" not in location:
            # absolute now, because the training script may change its working directory later
            location = f"sqlite:///{Path(location).expanduser().absolute()}"
        super().__init__(location or os.environ.get("MLFLOW_TRACKING_URI", ""), options)
        self._sizes: dict[str, int] = {}

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Find the MLflow run by its tag with our run id, or create it; log missing params."""
        self._uri = self.location or f"sqlite:///{folder.absolute().parent / 'mlflow.db'}"
        file = store.sqlite_file(self._uri)
        with store.api_calls(self.options.timeout_secs):
            if file is None:
                self._connect(run, None)
            else:
                store.check_is_sqlite(file)
                with store.file_lock(file.with_name(file.name + ".lock")):
                    store.check_is_mlflow_database(file)
                    self._connect(run, file.parent)
        self._media = MediaUploader(
            self._client, self._run_id, folder, self.options.timeout_secs, self.log_fallback
        )
        recent = state.get("recent", [])
        self._timestamps = metric_names.TimestampAllocator(
            [(tuple(identity), ms) for identity, ms in recent]
        )

    def _connect(self, run: Run, folder: Path | None) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(self._uri)
        name = self.options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
        self._experiment = store.find_experiment(self._client, name or "metricbus", folder)
        self._run_id = self._find_or_create_run(run)
        data = self._client.get_run(self._run_id).data
        names_by_key = {key: key for key in data.metrics}
        for key, name in data.tags.items():
            if key.startswith(metric_names.METRIC_NAME_TAG):
                names_by_key[key.removeprefix(metric_names.METRIC_NAME_TAG)] = name
        self._keys = metric_names.KeyMapper(names_by_key)
        self._source = run
        self._log_params_and_tags(run, data)

    def _log_params_and_tags(self, run: Run, data: RunData) -> None:
        """Log the params and the tags that MLflow's `data` of the run lacks."""
        params, tags = new_params(run.config, data, self._once)
        self._log_tags(tags + new_tags(run, data))
        for batch in store.in_batches(params, _PARAMS_PER_BATCH, _size_of_pair):
            self._client.log_batch(self._run_id, params=batch)

    def _find_or_create_run(self, run: Run) -> str:
        matches = self._client.search_runs([self._experiment], f"tags.`{RUN_ID_TAG}` = '{run.id}'")
        if matches:
            run_id: str = matches[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        created = self._client.create_run(
            self._experiment,
            start_time=run.started // 1_000_000,
            run_name=run.name,
            tags=run_tags(run),
        )
        return str(created.info.run_id)

    def _log_tags(self, tags: list[RunTag]) -> None:
        for batch in store.in_batches(tags, _PARAMS_PER_BATCH, _size_of_pair):
            self._client.log_batch(self._run_id, tags=batch)

    def write(self, records: Sequence[ScalarRow | Rewind | RunUpdate | MediumRecord]) -> None:
        """Upload media one by one, then send metrics in as few requests as MLflow allows."""
        rows = metric_names.metric_rows(records)
        updates = [record for record in records if isinstance(record, RunUpdate)]
        run = self._source.updated(*updates)
        if any(update.summary for update in updates):
            rows.append(summary_row(run, updates))
        self._media.send([record for record in records if isinstance(record, MediumRecord)])
        try:
            with store.api_calls(self.options.timeout_secs):
                if any(update.config or update.tags for update in updates):
                    data = self._client.get_run(self._run_id).data
                    self._log_params_and_tags(run, data)
                self._tag_rewinds([record for record in records if isinstance(record, Rewind)])
                self._tag_new_names(rows)
                metrics = self._metrics(rows)
                for batch in store.in_batches(metrics, _METRICS_PER_BATCH, self._size_of_metric):
                    self._client.log_batch(self._run_id, metrics=batch)
        except BaseException:
            self._timestamps.rollback()
            raise
        self._timestamps.commit()
        self._source = run

    def _tag_rewinds(self, rewinds: Sequence[Rewind]) -> None:
        # MLflow cannot delete metrics: the tag says which steps before this time are superseded
        from mlflow.entities import RunTag

        self._log_tags(
            [
                RunTag(f"{_REWIND_TAG}{rewind.time // 1_000_000}", f"steps beyond {rewind.step}")
                for rewind in rewinds
            ]
        )

    def _metrics(self, rows: Sequence[ScalarRow]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        key_of, allocate = self._keys.key, self._timestamps.allocate
        for row in rows:
            step, ms = row.x, row.time // 1_000_000
            for name, value in row.values.items():
                key, number = key_of(name), float(value)
                stored: str | float = number
                if number - number != 0:  # NaN or infinite
                    stored = self._stored_nonfinite(name, number)
                yield Metric(key, number, allocate((key, step, stored), ms), step)

    def _stored_nonfinite(self, name: str, number: float) -> str | float:
        """Return what MLflow stores for NaN or an infinity, as part of the metric's identity."""
        if math.isnan(number):
            return "NaN"
        message = "%r is infinite; MLflow stores infinities as the largest float"
        self._once.warn(message, name, key="infinite")
        return math.copysign(sys.float_info.max, number)

    def _tag_new_names(self, rows: Sequence[ScalarRow]) -> None:
        """Store the original of each changed name, before the first value under the new one."""
        from mlflow.entities import RunTag

        new = {name for row in rows for name in row.values if name not in self._keys}
        tags = []
        # names that are valid keys come first, so that they stay unchanged
        for name in sorted(new, key=lambda name: (metric_names.valid_key(name) != name, name)):
            key = self._keys.key(name)
            if key != name:
                tags.append(RunTag(metric_names.METRIC_NAME_TAG + key, name))
            if key not in (name, metric_names.valid_key(name)):
                _log.warning("MLflow key %r is taken; %r is logged as %r", key[:-9], name, key)
        try:
            self._log_tags(tags)
        except BaseException:
            self._keys.forget(new)
            raise

    def _size_of_metric(self, metric: Metric) -> int:
        size = self._sizes.get(metric.key)
        if size is None:
            size = self._sizes[metric.key] = _OVERHEAD + len(json.dumps(metric.key))
        return size

    def flush(self) -> Mapping[str, Any]:
        """Return the newest timestamps, from which later metrics must be kept apart."""
        return {"recent": self._timestamps.recent()}

    def close(self, status: Status) -> None:
        """Set the final status of the MLflow run, unless another process resumes it."""
        if status == "running":
            return
        with store.api_calls(self.options.timeout_secs):
            now = time.time_ns() // 1_000_000
            self._client.set_terminated(self._run_id, status.upper(), now)

    @property
    def where(self) -> str:
        """The URL of the run's page on a server, or the SQLite URI and the MLflow run id."""
        if self._uri.startswith(("http://", "https://")):
            page = f"#/experiments/{self._experiment}/runs/{self._run_id}"
            return redact(f"{self._uri.rstrip('/')}/{page}")
        return redact(f"{self._uri}, run {self._run_id}")

    @property
    def command(self) -> str:
        """The command that starts MLflow's UI for an SQLite file; empty for a server."""
        if store.sqlite_file(self._uri) is None:
            return ""
        return f"mlflow ui --backend-store-uri {shlex.quote(self._uri)}"


def _size_of_pair(pair: Param | RunTag) -> int:
    return _OVERHEAD + len(json.dumps(pair.key)) + len(json.dumps(pair.value))
