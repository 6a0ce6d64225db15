"""Tags for media: the original of changed names, and the tags that MLflow's UI looks for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from metricbus._common.media_records import ImageRecord, MediumRecord, TableRecord
from metricbus._common.sink_urls import short_hash
from metricbus._journal.media_files import safe_name
from metricbus.sinks.mlflow.artifacts import table_path
from metricbus.sinks.mlflow.metric_names import image_key

if TYPE_CHECKING:
    from mlflow import MlflowClient

MEDIUM_NAME_TAG = "metricbus.medium."
_IMAGES_TAG = "mlflow.loggedImages"  # mlflow.utils.mlflow_tags
_TABLES_TAG = "mlflow.loggedArtifacts"
# a tag has at most 8,000 characters; the rest is for the user's own calls of log_table
_MAX_TABLE_LIST_LENGTH = 7500
_PART, _FIRST_PART = re.compile(r"tables/.+/part-\d+\.json"), "/part-00000.json"


class MediaTagger:
    """Sets the tags for media, each once."""

    def __init__(
        self, client: MlflowClient, run_id: str, log_fallback: Callable[[str, str], None]
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._log_fallback = log_fallback
        self._set_keys: set[str] = set()
        self._seen_tables: set[str] = set()  # listed, or left out of a full list

    def tag(self, records: Sequence[MediumRecord]) -> None:
        """Set the tags of records whose artifacts have been uploaded."""
        for record in records:
            self._tag_name(record)
        if any(isinstance(record, ImageRecord) for record in records):
            self._set(_IMAGES_TAG, "True")
        self._list_tables(
            table_path(record) for record in records if isinstance(record, TableRecord)
        )

    def _set(self, key: str, value: str) -> None:
        if key not in self._set_keys:
            self._client.set_tag(self._run_id, key, value)
            self._set_keys.add(key)

    def _tag_name(self, record: MediumRecord) -> None:
        """Store the original name where an artifact's path has a changed one."""
        name, folder = record.name, safe_name(record.name)
        if isinstance(record, ImageRecord) and (key := image_key(name)) != name:
            self._set(MEDIUM_NAME_TAG + key, name[:8000])
        if folder != f"{name}-{short_hash(name)}":
            self._set(MEDIUM_NAME_TAG + folder, name[:8000])

    def _list_tables(self, paths: Iterable[str]) -> None:
        """List tables in the tag where MLflow's UI and `load_table` look for them.

        The tag is soon full, so the first part of a table may replace a later part of any table.
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
            if not _add_to_list(path, listed):
                self._log_fallback(
                    "this many tables in its UI and load_table",
                    "all parts as artifacts and listing only the first ones",
                )
        if (text := json.dumps(listed)) != before:
            self._client.set_tag(self._run_id, _TABLES_TAG, text)
        self._seen_tables.update(new)


def _add_to_list(path: str, listed: list[Any]) -> bool:
    """Add the path of a table's part to `listed`; return False if there is no room for it."""
    entry = {"path": path, "type": "table"}
    if entry in listed:
        return True
    extended = [*listed, entry]
    if path.endswith(_FIRST_PART):
        for candidate in reversed(listed):
            if len(json.dumps(extended)) <= _MAX_TABLE_LIST_LENGTH:
                break
            if _is_later_part(candidate):
                extended.remove(candidate)
    if len(json.dumps(extended)) > _MAX_TABLE_LIST_LENGTH:
        return False
    listed[:] = extended
    return True


def _is_later_part(entry: Any) -> bool:
    path = str(entry.get("path")) if isinstance(entry, dict) else ""
    return _PART.fullmatch(path) is not None and not path.endswith(_FIRST_PART)
