"""Places values on an x axis of epochs."""

from __future__ import annotations

import numpy as np

from metricbus._history.columns import Floats, Series


def epoch_positions(series: Series) -> Floats:
    """Return the x position of each value. Values of one epoch are spread over it by their steps.

    An epoch extends from its first step to that of the next epoch. The last epoch may be incomplete
    and is at least as long as the one before it. So values logged per step form a curve instead of
    vertical lines, and a value logged once per epoch is at the epoch itself.
    """
    epoch = series.epoch.astype(np.float64)
    order = np.lexsort((series.step, series.epoch))
    sorted_epoch = series.epoch[order]
    starts = np.flatnonzero(np.diff(sorted_epoch, prepend=sorted_epoch[:1] - 1))
    if len(starts) == len(epoch):
        return epoch
    step = series.step.astype(np.float64)
    first, last = step[order][starts], step[order][np.append(starts[1:], len(epoch)) - 1]
    lengths = last - first + 1
    unique_epochs = sorted_epoch[starts].astype(np.float64)
    lengths[:-1] = np.maximum(lengths[:-1], np.diff(first) / np.diff(unique_epochs))
    if len(lengths) > 1:
        lengths[-1] = max(lengths[-1], lengths[-2])
    index = np.searchsorted(unique_epochs, epoch)
    positions: Floats = epoch + (step - first[index]) / lengths[index]
    return positions
