"""Media on their way to MLflow: as artefacts, then tags of the run.

All files of a batch are checked before the first is sent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metricbus._common.media_records import MediumRecord
from metricbus.sinks.mlflow.artifacts import Artefact, Layout
from metricbus.sinks.mlflow.store import requests, upload
from metricbus.sinks.mlflow.tags import MediaTags

if TYPE_CHECKING:
    from mlflow import MlflowClient

_BYTES_A_SECOND = 1_000_000  # a server answers when it has stored the file, perhaps far away


class Artefacts:
    """Sends the media of the run in `folder` to MLflow's run."""

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
        self._layout = Layout(folder, log_fallback)
        self._tags = MediaTags(client, run_id, log_fallback)
        self._sent: set[str] = set()  # by a call that failed then

    def send(self, records: Sequence[MediumRecord]) -> None:
        """Sends the artefacts of all records; nothing, if a file is not what was logged.

        What fails half way goes on from there when the records come again, all or some of them.
        """
        if not records:
            return
        plan = [artefact for record in records for artefact in self._layout.of(record)]
        with tempfile.TemporaryDirectory(prefix="metricbus-") as folder:
            for artefact in plan:
                if artefact.path not in self._sent:
                    self._send(artefact, Path(folder))
                    self._sent.add(artefact.path)
        with requests(self._timeout_secs):
            self._tags.put(records)
        self._sent.difference_update(artefact.path for artefact in plan)

    def _send(self, artefact: Artefact, folder: Path) -> None:
        """MLflow gives an artefact the name of the file that it is made of."""
        target, _, name = artefact.path.rpartition("/")
        file = folder / name
        if isinstance(artefact.content, Path):
            file.symlink_to(artefact.content)
        else:
            content = artefact.content()
            if content is None:
                return
            file.write_bytes(content)
        secs = self._timeout_secs + file.stat().st_size // _BYTES_A_SECOND
        with requests(secs):
            upload(self._client, self._run_id, file, target)
        file.unlink()
