"""Where MLflow keeps its runs, and how it is asked: in good time, in batches, in our words."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote

from metricbus.errors import ConfigError, Rejected, Unavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

_BYTES_A_BATCH = 900_000  # MLflow takes 1,000,000: mlflow.utils.validation
_FOR_GOOD = (400, 404, 409, 413, 422)
_NO_ROOT = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


@contextmanager
def requests(timeout_secs: int) -> Iterator[None]:
    """Around calls of MLflow: bounds the time of each, and puts failures into our words."""
    from mlflow.exceptions import MlflowException, RestException

    try:
        with _own_environment(timeout_secs):
            yield
    except MlflowException as error:
        response = _response_behind(error)
        status = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if status in _FOR_GOOD and (response is None or isinstance(error, RestException)):
            raise Rejected(f"MLflow: {error}") from error  # in MLflow's own words, not a proxy's
        wait = None if response is None else retry_after(response.headers.get("Retry-After"))
        raise Unavailable(f"MLflow: {error}", retry_after=wait) from error


def upload(client: MlflowClient, run_id: str, file: Path, folder: str) -> None:
    """Sends a file to the run's artefacts; `Rejected` if they can never be written to.

    An `OSError` that escapes is one for now. The answers of a server are such errors, too.
    """
    try:
        client.log_artifact(run_id, str(file), folder)
    except OSError as error:
        what = f"MLflow takes no artefact {folder}/{file.name}: {error}"
        response = getattr(error, "response", None)
        if response is not None:
            if _is_for_good(response):
                raise Rejected(what) from error
            raise Unavailable(what, retry_after(response.headers.get("Retry-After"))) from error
        if error.errno in _NO_ROOT:
            raise Rejected(
                f"{what}; the experiment's artefact folder must be there and writable for who "
                "delivers, or a server must take artefacts itself (mlflow server "
                "--serve-artifacts --artifacts-destination FOLDER)"
            ) from error
        raise


def _is_for_good(response: Any) -> bool:
    """Whether it would be answered so again: by MLflow itself, or for the size or the method."""
    if response.status_code in (405, 413):
        return True
    return response.status_code in _FOR_GOOD and b'"error_code"' in response.content


def _response_behind(error: BaseException) -> Any:
    """The HTTP response that MLflow made the error of, and does not hand on; None without one.

    It stands in the frames of MLflow or, where that never saw it, of urllib3.
    """
    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in walk_tb(cause.__traceback__):
            response = frame.f_locals.get("response")
            if hasattr(getattr(response, "headers", None), "get"):
                return response
        cause = cause.__cause__ or cause.__context__
    return None


def retry_after(header: str | None) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3), if it makes sense."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def in_batches(items: Iterable[T], most: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """The items in as few requests as MLflow's limits allow: `most` items, and so many bytes."""
    batch: list[T] = []
    nbytes = 0
    for item in items:
        size = size_of(item)
        if batch and (len(batch) == most or nbytes + size > _BYTES_A_BATCH):
            yield batch
            batch, nbytes = [], 0
        batch.append(item)
        nbytes += size
    if batch:
        yield batch


def find_experiment(client: MlflowClient, name: str, folder: Path | None) -> str:
    """The experiment's id; it is created, with its artefacts under `folder`, if it is not there."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        artefacts = None
        if folder is not None:
            artefacts = (folder / "mlflow-artifacts" / quote(name, safe="")).as_uri()
        try:
            return str(client.create_experiment(name, artefacts))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run may have been faster
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"the experiment {name!r} has been deleted; bring it back with 'mlflow experiments "
            f"restore --experiment-id {found.experiment_id}', or name another by "
            "mlflow?experiment=..."
        )
    return str(found.experiment_id)


def sqlite_uri(path: Path) -> str:
    """The database in this file, as MLflow names it."""
    return f"sqlite:///{path}"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite database; None for any other URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///"))).absolute()


def check_is_sqlite(file: Path) -> None:
    """`ConfigError` if the file is there and is something else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise ConfigError(f"{file} is a folder, not MLflow's database; write mlflow:{file}/x.db")
    if file.exists():
        with open(file, "rb") as opened:
            start = opened.read(16)
        if start not in (b"", b"SQLite format 3\0"):
            raise ConfigError(
                f"{file} is no SQLite database; name another file by mlflow:FILE.db, or move this "
                "one away"
            )


def check_is_mlflows(file: Path) -> None:
    """`ConfigError` if the database is another program's; MLflow would add its tables to it."""
    with closing(sqlite3.connect(file, timeout=10)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if tables and not tables & {"alembic_version", "experiments"}:
        raise ConfigError(
            f"{file} is another program's database, with {', '.join(sorted(tables)[:3])} …; name a "
            "file of its own by mlflow:FILE.db"
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time: MLflow cannot create its tables twice."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


_lock = threading.Lock()
_calls = 0
_before: dict[str, str | None] = {}


@contextmanager
def _own_environment(timeout_secs: int) -> Iterator[None]:
    """MLflow's own retries, which go on for minutes, are off meanwhile, and its prints, too.

    MLflow takes these settings from the environment alone. They stand there only during our calls,
    so that the training script's own use of MLflow keeps its own.
    """
    global _calls
    ours = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_secs),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    with _lock:
        if _calls == 0:
            _before.update((name, os.environ.get(name)) for name in ours)
            os.environ.update(ours)
        _calls += 1
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                for name, value in _before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
