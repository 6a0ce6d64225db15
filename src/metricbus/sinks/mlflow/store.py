"""Access to MLflow's backend store: request timeouts, error mapping, batches, SQLite files."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from errno import EACCES, EEXIST, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from metricbus._compat.mlflow import response_of
from metricbus.errors import BackendUnavailableError, ConfigError, RecordsRejectedError

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

_MAX_BATCH_BYTES = 900_000  # MLflow allows 1,000,000: mlflow.utils.validation
_PERMANENT_STATUSES = (400, 404, 409, 413, 422)
_UNUSABLE_FOLDER = (EACCES, EEXIST, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS)


@contextmanager
def api_calls(timeout_secs: int) -> Iterator[None]:
    """Limit the time of each MLflow request in the block, and map MLflow's errors.

    Raises `RecordsRejectedError` if MLflow refused a request permanently, and
    `BackendUnavailableError` otherwise.
    """
    from mlflow.exceptions import MlflowException, RestException

    try:
        with _request_environment(timeout_secs):
            yield
    except MlflowException as error:
        response = response_of(error)
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        # only a RestException is MLflow's own answer; a proxy may send the same status
        if status in _PERMANENT_STATUSES and (response is None or isinstance(error, RestException)):
            raise RecordsRejectedError(f"MLflow: {error}") from error
        delay = None if response is None else retry_after(response.headers.get("Retry-After"))
        raise BackendUnavailableError(f"MLflow: {error}", retry_after=delay) from error


def upload(client: MlflowClient, run_id: str, file: Path, folder: str) -> None:
    """Upload a file to the run's artifacts.

    Raises `RecordsRejectedError` if the artifact can never be written, and
    `BackendUnavailableError` or another `OSError` if a later attempt may succeed. (Error responses
    of a server are `OSError`s, too.)
    """
    try:
        client.log_artifact(run_id, str(file), folder)
    except OSError as error:
        message = f"MLflow artifact {folder}/{file.name} cannot be written: {error}"
        response = getattr(error, "response", None)
        if response is not None:
            if _is_permanent(response):
                raise RecordsRejectedError(message) from error
            raise BackendUnavailableError(
                message, retry_after(response.headers.get("Retry-After"))
            ) from error
        if error.errno in _UNUSABLE_FOLDER:
            raise RecordsRejectedError(
                f"{message}. The experiment's artifact folder must exist and be writable for the "
                "delivering process, or a server must store artifacts itself (mlflow server "
                "--serve-artifacts --artifacts-destination FOLDER)"
            ) from error
        raise


def _is_permanent(response: Any) -> bool:
    """Check whether a retry would fail, too: MLflow refused, or the size or method is refused."""
    if response.status_code in (405, 413):
        return True
    return response.status_code in _PERMANENT_STATUSES and b'"error_code"' in response.content


def retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3); None if invalid."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def in_batches(
    items: Iterable[T], max_items: int, size_of: Callable[[T], int]
) -> Iterator[list[T]]:
    """Group items into as few requests as MLflow's limits allow, which are items and bytes."""
    batch: list[T] = []
    nbytes = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == max_items or nbytes + size > _MAX_BATCH_BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append(item)
        nbytes += size
    if batch:
        yield batch


def find_experiment(client: MlflowClient, name: str, folder: Path | None) -> str:
    """Return the id of the experiment; create it, with its artifacts in `folder`, if necessary."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = None
        if folder is not None:
            artifacts = (folder / "mlflow-artifacts" / quote(name, safe="")).as_uri()
        try:
            return str(client.create_experiment(name, artifacts))
        except MlflowException:
            # another run may have created it in the meantime
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ConfigError(
            f"the MLflow experiment {name!r} is deleted; restore it with 'mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}', or choose another one with "
            "mlflow?experiment=NAME"
        )
    return str(experiment.experiment_id)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite URI; None for any other URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///"))).absolute()


def check_is_sqlite(file: Path) -> None:
    """Raise `ConfigError` if the file exists and is not an SQLite database."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise ConfigError(f"{file} is a folder, not an MLflow database; write mlflow:{file}/x.db")
    if file.exists():
        with open(file, "rb") as opened:
            start = opened.read(16)
        if start not in (b"", b"SQLite format 3\0"):
            raise ConfigError(
                f"{file} is not an SQLite database; choose another file with mlflow:FILE.db, or "
                "move this one away"
            )


def check_is_mlflow_database(file: Path) -> None:
    """Raise `ConfigError` if the database has tables, but none of MLflow's.

    MLflow would add its own tables to another program's database.
    """
    with closing(sqlite3.connect(file, timeout=10)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if tables and not tables & {"alembic_version", "experiments"}:
        raise ConfigError(
            f"{file} is another program's database, with the tables "
            f"{', '.join(sorted(tables)[:3])} …; choose a separate file with mlflow:FILE.db"
        )


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Let one process at a time into the block. (MLflow fails if two create its tables.)"""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_environment_lock = threading.Lock()
_active_blocks = 0
_saved_environment: dict[str, str | None] = {}


@contextmanager
def _request_environment(timeout_secs: int) -> Iterator[None]:
    """Set a request timeout, and turn off MLflow's own retries (which take minutes) and prints.

    MLflow reads these settings from the environment only. They are set during this sink's calls and
    restored afterwards, so they do not affect how the training script uses MLflow.
    """
    global _active_blocks
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_secs),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    with _environment_lock:
        if _active_blocks == 0:
            _saved_environment.update((name, os.environ.get(name)) for name in settings)
            os.environ.update(settings)
        _active_blocks += 1
    try:
        yield
    finally:
        with _environment_lock:
            _active_blocks -= 1
            if _active_blocks == 0:
                for name, value in _saved_environment.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
