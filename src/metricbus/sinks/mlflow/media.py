"""Uploads media to MLflow: artifacts first, then tags. A batch's files are all checked first."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metricbus._common.media_records import MediumRecord
from metricbus.sinks.mlflow.artifacts import Artifact, ArtifactLayout
from metricbus.sinks.mlflow.store import api_calls, upload
from metricbus.sinks.mlflow.tags import MediaTagger

if TYPE_CHECKING:
    from mlflow import MlflowClient

# a server answers only after it has stored the file, perhaps over a slow network
_BYTES_PER_SECOND = 1_000_000


class MediaUploader:
    """Uploads the media of the run in `folder` to its MLflow run."""

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        folder: Path,
        timeout_secs: int,
        log_fallback: Callable[[str, str], None],
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._timeout_secs = timeout_secs
        self._layout = ArtifactLayout(folder, log_fallback)
        self._tagger = MediaTagger(client, run_id, log_fallback)
        self._sent: set[str] = set()  # artifacts that a failed call has already uploaded

    def send(self, records: Sequence[MediumRecord]) -> None:
        """Upload the artifacts of all records, then set their tags.

        Raises `MediaError` before the first upload if a file is missing or has changed. After any
        other failure, a call with some or all of the records uploads only what is missing.
        """
        if not records:
            return
        plan = [artifact for record in records for artifact in self._layout.artifacts(record)]
        with tempfile.TemporaryDirectory(prefix="metricbus-") as folder:
            for artifact in plan:
                if artifact.path not in self._sent:
                    self._send(artifact, Path(folder))
                    self._sent.add(artifact.path)
        with api_calls(self._timeout_secs):
            self._tagger.tag(records)
        self._sent.difference_update(artifact.path for artifact in plan)

    def _send(self, artifact: Artifact, folder: Path) -> None:
        # MLflow names an artifact after the local file, so the file gets the right name first
        target, _, name = artifact.path.rpartition("/")
        file = folder / name
        if isinstance(artifact.content, Path):
            file.symlink_to(artifact.content)
        else:
            content = artifact.content()
            if content is None:
                return
            file.write_bytes(content)
        secs = self._timeout_secs + file.stat().st_size // _BYTES_PER_SECOND
        with api_calls(secs):
            upload(self._client, self._run_id, file, target)
        file.unlink()
