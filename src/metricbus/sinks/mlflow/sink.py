"""MLflow: one run, its metrics by `log_batch`, its config as params, its media as artefacts.

MLflow keeps a metric's key, value, time in milliseconds and step, and has one axis: the step; for
what is reduced over an epoch the epoch; for a series with an axis of its own that axis's latest
value. Values are float64. The infinities, which MLflow stores as the largest float, are told once.

A metric that is logged again with all four equal is kept once, which is what makes delivering again
safe; values that are equal by chance are set apart by a millisecond. Names that MLflow refuses are
changed (`mean@1` to `mean_1`), and the run's tag `metricbus.name.<new>` has the original.

Without a location, `MLFLOW_TRACKING_URI` says where to; without that, it is one SQLite file for all
runs beside them, `mlflow.db`.
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
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from metricbus._common.media_records import MEDIA, MediumRecord
from metricbus._common.records import Rewind, Scalars, Status
from metricbus._common.sink_urls import redact
from metricbus._journal.run import Run
from metricbus.errors import ConfigError
from metricbus.sinks.base import Sink
from metricbus.sinks.mlflow.media import Artefacts
from metricbus.sinks.mlflow.rows import NAME_TAG, Names, Times, allowed, rows_of
from metricbus.sinks.mlflow.run_start import RUN_ID, params_of, tags_of
from metricbus.sinks.mlflow.store import (
    check_is_mlflows,
    check_is_sqlite,
    find_experiment,
    in_batches,
    locked,
    requests,
    sqlite_file,
    sqlite_uri,
)

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, RunTag

_log = logging.getLogger("metricbus.sinks.mlflow")

# mlflow.utils.validation has these limits
_METRICS_A_BATCH = 1000
_PARAMS_A_BATCH = 100

_OVERHEAD = 160  # bytes of an item in a request beside its texts, generously
_REWIND = "metricbus.superseded_before."
_SERVER = re.compile(r"[^/:@]+:\d+(/.*)?")
_STATUS = {"running": "RUNNING", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


class MlflowOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`experiment` is its name, `timeout_secs` the longest that one request may take."""

    experiment: str | None = None
    timeout_secs: Annotated[int, msgspec.Meta(ge=1)] = 10


class MlflowSink(Sink):
    """Logs to MLflow; `mlflow:FILE.db` or `mlflow+http://host:5000` say where to."""

    Options = MlflowOptions
    options: MlflowOptions
    kinds = (Scalars, Rewind, *MEDIA)
    prefers_subprocess = True
    dedup = "content"
    requires = ("mlflow",)
    install = "pip install 'metricbus[mlflow]'"

    def __init__(self, location: str = "", options: Any = None) -> None:
        """Settles where a file is: a training script may change its folder later."""
        if _SERVER.fullmatch(location):
            raise ConfigError(
                f"mlflow:{location} would be a file; of a server, write mlflow+http://{location}"
            )
        if location and "://" not in location:
            location = sqlite_uri(Path(location).expanduser().absolute())
        super().__init__(location or os.environ.get("MLFLOW_TRACKING_URI", ""), options)
        self._told: set[str] = set()
        self._sizes: dict[str, int] = {}

    def open(self, run: Run, folder: Path, state: Mapping[str, Any]) -> None:
        """Finds the run by the tag with our id, or creates it; logs the params it lacks."""
        self._uri = self.location or sqlite_uri(folder.absolute().parent / "mlflow.db")
        file = sqlite_file(self._uri)
        with self._requests():
            if file is None:
                self._connect(run, None)
            else:
                check_is_sqlite(file)
                with locked(file.with_name(file.name + ".lock")):
                    check_is_mlflows(file)
                    self._connect(run, file.parent)
        self._artefacts = Artefacts(
            self._client, self._run_id, folder, self.options.timeout_secs, self.log_fallback
        )
        self._times = Times([(tuple(slot), at) for slot, at in state.get("recent", [])])

    def _connect(self, run: Run, folder: Path | None) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(self._uri)
        name = self.options.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
        self._experiment = find_experiment(self._client, name or "metricbus", folder)
        self._run_id = self._find_run(run)
        found = self._client.get_run(self._run_id)
        taken = {key: key for key in found.data.metrics}
        for key, name in found.data.tags.items():
            if key.startswith(NAME_TAG):
                taken[key.removeprefix(NAME_TAG)] = name
        self._names = Names(taken)
        self._log_params(run.config, found.data.params)

    def _find_run(self, run: Run) -> str:
        found = self._client.search_runs([self._experiment], f"tags.`{RUN_ID}` = '{run.id}'")
        if found:
            run_id: str = found[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        made = self._client.create_run(
            self._experiment,
            start_time=run.started // 1_000_000,
            run_name=run.name,
            tags=tags_of(run),
        )
        return str(made.info.run_id)

    def _log_params(self, config: Mapping[str, Any], logged: Mapping[str, str]) -> None:
        params, tags = params_of(config, logged, self._tell_once)
        self._log_tags(tags)
        for batch in in_batches(params, _PARAMS_A_BATCH, _size_of_pair):
            self._client.log_batch(self._run_id, params=batch)

    def _log_tags(self, tags: list[RunTag]) -> None:
        for batch in in_batches(tags, _PARAMS_A_BATCH, _size_of_pair):
            self._client.log_batch(self._run_id, tags=batch)

    def write(self, records: Sequence[Scalars | Rewind | MediumRecord]) -> None:
        """Media one by one, then as many metrics in a request as MLflow takes."""
        rows = rows_of(records)
        self._artefacts.send([one for one in records if isinstance(one, MediumRecord)])
        try:
            with self._requests():
                self._tag_rewinds([one for one in records if isinstance(one, Rewind)])
                self._tag_new_names(rows)
                metrics = self._metrics(rows)
                for batch in in_batches(metrics, _METRICS_A_BATCH, self._size_of_metric):
                    self._client.log_batch(self._run_id, metrics=batch)
        except BaseException:
            self._times.forget()
            raise
        self._times.keep()

    def _tag_rewinds(self, rewinds: Sequence[Rewind]) -> None:
        """MLflow cannot take metrics back: a tag says which steps are superseded since when."""
        from mlflow.entities import RunTag

        self._log_tags(
            [
                RunTag(f"{_REWIND}{one.time // 1_000_000}", f"steps beyond {one.step}")
                for one in rewinds
            ]
        )

    def _metrics(self, records: Sequence[Scalars]) -> Iterator[Metric]:
        from mlflow.entities import Metric

        key_of, place = self._names.key, self._times.place
        for record in records:
            step, at = record.x, record.time // 1_000_000
            for name, value in record.values.items():
                key, number = key_of(name), float(value)
                same: str | float = number
                if number - number != 0:  # NaN or infinite
                    same = self._nonfinite(name, number)
                yield Metric(key, number, place((key, step, same), at), step)

    def _nonfinite(self, name: str, number: float) -> str | float:
        """What MLflow makes of the number."""
        if math.isnan(number):
            return "NaN"
        self._tell_once(
            "%r is infinite: MLflow stores infinities as the largest float, %r",
            name,
            sys.float_info.max,
        )
        return math.copysign(sys.float_info.max, number)

    def _tag_new_names(self, records: Sequence[Scalars]) -> None:
        """The original of each name that is changed; before the first value under the new one."""
        from mlflow.entities import RunTag

        new = {name for record in records for name in record.values if not self._names.knows(name)}
        tags = []
        for name in sorted(new, key=lambda name: (allowed(name) != name, name)):  # as is, first
            key = self._names.key(name)
            if key != name:
                tags.append(RunTag(NAME_TAG + key, name))
            if key not in (name, allowed(name)):
                _log.warning("MLflow has %r for another name; %r is %r there", key[:-9], name, key)
        try:
            self._log_tags(tags)
        except BaseException:
            self._names.forget(new)
            raise

    def _size_of_metric(self, metric: Metric) -> int:
        size = self._sizes.get(metric.key)
        if size is None:
            size = self._sizes[metric.key] = _OVERHEAD + len(json.dumps(metric.key))
        return size

    def flush(self) -> Mapping[str, Any]:
        """What a value that comes next may have to be set apart from."""
        return {"recent": self._times.recent()}

    def close(self, status: Status) -> None:
        """Ends the run as it ended."""
        with self._requests():
            if status == "running":  # somebody else goes on
                return
            now = time.time_ns() // 1_000_000
            self._client.set_terminated(self._run_id, _STATUS[status], now)

    @property
    def where(self) -> str:
        """The run's page on a server, or the run in a file."""
        if self._uri.startswith(("http://", "https://")):
            page = f"#/experiments/{self._experiment}/runs/{self._run_id}"
            return redact(f"{self._uri.rstrip('/')}/{page}")
        return redact(f"{self._uri}, run {self._run_id}")

    @property
    def command(self) -> str:
        """Opens MLflow's page on a file; a server has one already."""
        if sqlite_file(self._uri) is None:
            return ""
        return f"mlflow ui --backend-store-uri {shlex.quote(self._uri)}"

    def _requests(self) -> AbstractContextManager[None]:
        return requests(self.options.timeout_secs)

    def _tell_once(self, message: str, *args: object) -> None:
        if message not in self._told:
            self._told.add(message)
            _log.warning(message, *args)


def _size_of_pair(pair: Param | RunTag) -> int:
    return _OVERHEAD + len(json.dumps(pair.key)) + len(json.dumps(pair.value))
