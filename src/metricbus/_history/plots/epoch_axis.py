"""Where values stand on an axis of epochs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metricbus._history.columns import Series

Floats = NDArray[np.float64]


def on_epochs(series: Series) -> Floats:
    """The epoch of each value; in an epoch with several, they are spread over it by their steps.

    An epoch is as long as it takes to the next one's first step, and the last one, which may not
    be over, as long as the one before it. So values logged on steps make a curve and no vertical
    lines, and a value an epoch stands on the epoch itself.
    """
    epoch = series.epoch.astype(np.float64)
    order = np.lexsort((series.step, series.epoch))
    in_order = series.epoch[order]
    starts = np.flatnonzero(np.diff(in_order, prepend=in_order[:1] - 1))
    if len(starts) == len(epoch):
        return epoch
    step = series.step.astype(np.float64)
    first, last = step[order][starts], step[order][np.append(starts[1:], len(epoch)) - 1]
    lengths = last - first + 1
    found = in_order[starts].astype(np.float64)
    lengths[:-1] = np.maximum(lengths[:-1], np.diff(first) / np.diff(found))
    if len(lengths) > 1:
        lengths[-1] = max(lengths[-1], lengths[-2])
    number = np.searchsorted(found, epoch)
    spread: Floats = epoch + (step - first[number]) / lengths[number]
    return spread
