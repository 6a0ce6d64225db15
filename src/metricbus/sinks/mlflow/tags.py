"""Tags of MLflow's run that go with media: original names, and what MLflow's page looks for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from metricbus._common.media_records import ImageRecord, MediumRecord, TableRecord
from metricbus._common.sink_urls import digest
from metricbus._journal.media_files import safe_name
from metricbus.sinks.mlflow.artifacts import table_path
from metricbus.sinks.mlflow.rows import image_key

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME_TAG = "metricbus.medium."
_IMAGES_TAG = "mlflow.loggedImages"  # mlflow.utils.mlflow_tags
_TABLES_TAG = "mlflow.loggedArtifacts"
_ROOM_FOR_TABLES = 7500  # of the 8,000 characters that a tag may have: log_table adds to it, too
_PART, _FIRST_PART = re.compile(r"tables/.+/part-\d+\.json"), "/part-00000.json"


class MediaTags:
    """Sets the tags that go with media, each once."""

    def __init__(
        self, client: MlflowClient, run_id: str, log_fallback: Callable[[str, str], None]
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._tell_fallback = log_fallback
        self._tagged: set[str] = set()  # tags that the run has
        self._seen_tables: set[str] = set()  # listed, or known to find no room

    def put(self, records: Sequence[MediumRecord]) -> None:
        """Sets those of records whose artefacts have been sent."""
        for record in records:
            self._tag_name(record)
        if any(isinstance(record, ImageRecord) for record in records):
            self._tag(_IMAGES_TAG, "True")
        self._list_tables(table_path(one) for one in records if isinstance(one, TableRecord))

    def _tag(self, key: str, value: str) -> None:
        if key not in self._tagged:
            self._client.set_tag(self._run_id, key, value)
            self._tagged.add(key)

    def _tag_name(self, record: MediumRecord) -> None:
        """The original of each name that a path has changed."""
        name, folder = record.name, safe_name(record.name)
        if isinstance(record, ImageRecord) and (key := image_key(name)) != name:
            self._tag(NAME_TAG + key, name[:8000])
        if folder != f"{name}-{digest(name)}":
            self._tag(NAME_TAG + folder, name[:8000])

    def _list_tables(self, paths: Iterable[str]) -> None:
        """MLflow's page and `load_table` find tables by a tag, which is soon full.

        So the first part of a table may take the place of a later part.
        """
        new = [path for path in paths if path not in self._seen_tables]
        if not new:
            return
        before = self._client.get_run(self._run_id).data.tags.get(_TABLES_TAG, "")
        listed: list[Any] = []
        with suppress(ValueError):
            listed = json.loads(before or "[]")
        if not isinstance(listed, list):
            listed = []
        for path in new:
            if not _list(path, listed):
                self._tell_fallback(
                    "list of so many tables",
                    "all of their parts as artefacts; its page and load_table know the first ones",
                )
        if (text := json.dumps(listed)) != before:
            self._client.set_tag(self._run_id, _TABLES_TAG, text)
        self._seen_tables.update(new)


def _list(path: str, listed: list[Any]) -> bool:
    """Adds the path of a table's part; False if there is no room for it."""
    entry = {"path": path, "type": "table"}
    if entry in listed:
        return True
    added = [*listed, entry]
    if path.endswith(_FIRST_PART):
        for other in reversed(listed):
            if len(json.dumps(added)) <= _ROOM_FOR_TABLES:
                break
            if _is_later_part(other):
                added.remove(other)
    if len(json.dumps(added)) > _ROOM_FOR_TABLES:
        return False
    listed[:] = added
    return True


def _is_later_part(entry: Any) -> bool:
    path = str(entry.get("path")) if isinstance(entry, dict) else ""
    return _PART.fullmatch(path) is not None and not path.endswith(_FIRST_PART)
