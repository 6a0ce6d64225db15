"""What a hook gives back, to take it away again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class HookHandle(ABC):
    """A hook that is on until `remove()`, or the end of its `with` block, takes it away."""

    def remove(self) -> None:
        """Takes the hook away; a second call does nothing."""
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
        """Leaves everything as it was; `error` is what ended the `with` block."""
