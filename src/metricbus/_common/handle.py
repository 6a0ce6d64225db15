"""The base class of the handles by which hooks and monitors are removed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class HookHandle(ABC):
    """An active hook; `remove()`, or leaving its `with` block, removes it."""

    def remove(self) -> None:
        """Remove the hook; further calls do nothing."""
        self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(error)

    @abstractmethod
    def _end(self, error: BaseException | None) -> None:
        """Undo the hook; `error` is the exception that ended the `with` block, if any."""
