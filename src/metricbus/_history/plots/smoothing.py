"""Exponential smoothing as in TensorBoard.

`last = weight * last + (1 - weight) * value`, divided by `1 - weight^n` after n values to correct
the bias towards zero at the start. Source: `resmoothDataset` in TensorBoard's
`components/vz_line_chart2/line-chart.ts`.
"""

from __future__ import annotations

import numpy as np

from metricbus._history.columns import Floats

_BLOCK_VALUES = 64  # per matrix product


def check_weight(weight: float) -> None:
    """Raise `ValueError` unless the weight is in [0, 1). A weight of 0 does not smooth."""
    if not 0 <= weight < 1:
        raise ValueError(f"smooth must be at least 0 and below 1, such as 0.9, not {weight!r}")


def smooth_values(values: Floats, weight: float) -> Floats:
    """Return the smoothed values. Values that are not finite are unchanged and have no effect."""
    if weight == 0:
        return values
    finite = np.isfinite(values)
    result = values.copy()
    mean = _biased_mean(values[finite], weight)
    result[finite] = mean / -np.expm1(np.arange(1, len(mean) + 1) * np.log(weight))
    return result


def _biased_mean(values: Floats, weight: float) -> Floats:
    """Return the recursion from zero, in blocks: a Python loop over 10^7 values takes seconds."""
    n_blocks = -(-len(values) // _BLOCK_VALUES)
    blocks = np.zeros((n_blocks, _BLOCK_VALUES))
    blocks.flat[: len(values)] = values
    ages = np.arange(_BLOCK_VALUES)[:, None] - np.arange(_BLOCK_VALUES)
    matrix = np.where(ages >= 0, (1 - weight) * weight ** np.maximum(ages, 0), 0.0)
    means = blocks @ matrix.T
    carry = np.zeros(n_blocks)
    last = 0.0
    for index, block_mean in enumerate(means[:, -1].tolist()):
        carry[index] = last
        last = block_mean + weight**_BLOCK_VALUES * last
    means += carry[:, None] * weight ** np.arange(1, _BLOCK_VALUES + 1)
    result: Floats = means.reshape(-1)[: len(values)]
    return result
