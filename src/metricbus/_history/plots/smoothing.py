"""Exponential smoothing as TensorBoard does it.

`last = weight * last + (1 - weight) * value`, divided by `1 - weight^n` after n values, so that the
beginning does not lean towards zero (`resmoothDataset` in TensorBoard's
`components/vz_line_chart2/line-chart.ts`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK = 64  # values smoothed by one product of matrices


def checked_weight(weight: float) -> float:
    """The weight, from 0 (nothing is smoothed) to below 1; else `ValueError`."""
    if not 0 <= weight < 1:
        raise ValueError(f"smooth must be from 0 to below 1, such as 0.9, not {weight!r}")
    return float(weight)


def smoothed(values: Floats, weight: float) -> Floats:
    """The smoothed values; what is not finite stays as it is and counts for nothing."""
    if weight == 0:
        return values
    finite = np.isfinite(values)
    result = values.copy()
    mean = _biased_mean(values[finite], weight)
    result[finite] = mean / -np.expm1(np.arange(1, len(mean) + 1) * np.log(weight))
    return result


def _biased_mean(values: Floats, weight: float) -> Floats:
    """The recursion from zero; in blocks, since a loop over 10^7 values would take seconds."""
    n_blocks = -(-len(values) // _BLOCK)
    blocks = np.zeros((n_blocks, _BLOCK))
    blocks.flat[: len(values)] = values
    ages = np.arange(_BLOCK)[:, None] - np.arange(_BLOCK)
    matrix = np.where(ages >= 0, (1 - weight) * weight ** np.maximum(ages, 0), 0.0)
    means = blocks @ matrix.T
    carried = np.zeros(n_blocks)
    last = 0.0
    for index, end in enumerate(means[:, -1].tolist()):
        carried[index] = last
        last = end + weight**_BLOCK * last
    means += carried[:, None] * weight ** np.arange(1, _BLOCK + 1)
    result: Floats = means.reshape(-1)[: len(values)]
    return result
