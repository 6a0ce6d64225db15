"""Where ranks put together what each has reduced."""

from __future__ import annotations

from typing import Any

import msgspec

from metricbus.across import merge
from metricbus.engine import Engine
from metricbus.ranks import find_rank, gather
from metricbus.records import Number


class Part(msgspec.Struct):
    """What one rank brings."""

    writes: bool
    parts: dict[str, Any]


def meet(
    engine: Engine,
    what: str,
    group: Any,
    timeout: float,
    block_secs: float,
    *,
    epoch: int,
    ended: bool,
) -> dict[str, Number]:
    """The results by name, the same on every rank of the group; the first that writes logs them.

    Raises `RankError`; then what this rank had brought is open again.
    """
    own = Part(writes=engine.folder is not None, parts=dict(engine.take_part(block_secs)))
    try:
        said = gather(msgspec.msgpack.encode(own), what, group=group, timeout=timeout)
        by_rank = {rank: msgspec.msgpack.decode(part, type=Part) for rank, part in said.items()}
        results = merge({rank: part.parts for rank, part in by_rank.items()})
    except BaseException:
        engine.give_back(own.parts)
        raise
    writer = next((rank for rank, part in by_rank.items() if part.writes), None)
    engine.met(results, epoch, ended=ended, here=writer == find_rank().number)
    return {one.emitted_as: one.value for one in results}
