"""Copies of a bus in other processes, made by a fork or by pickling.

A copy joins the run when it is first used. Until then it has no thread and no open file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import NamedTuple

from metricbus._aggregate.rules import Definition
from metricbus._common.distributed import Rank
from metricbus._journal.run import Run, RunFolder

_log = logging.getLogger("metricbus")


class CopiedRun(NamedTuple):
    """The run that a copy joins, and the rank of the process that the copy comes from.

    On a rank that does not write, `folder` and `run` are None.
    """

    folder: RunFolder | None
    run: Run | None
    rank: Rank


def picklable(definitions: Iterable[Definition]) -> list[Definition]:
    """Return the definitions that can be pickled. Reduction functions must be importable."""
    import pickle  # imported here because few runs need it

    can_be_pickled = []
    for definition in definitions:
        try:
            pickle.dumps(definition)
        except Exception as error:
            _log.warning(
                "The copy of the bus in another process does not have the definition of %r, "
                "because it cannot be pickled: %s",
                definition.pattern,
                error,
            )
        else:
            can_be_pickled.append(definition)
    return can_be_pickled
