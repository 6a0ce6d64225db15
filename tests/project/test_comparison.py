"""The comparison page's claims about killed processes, checked with fewer calls.

`killed_writers.py` generates the page's table.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.killed_writers import WRITERS, count_kept_values

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"


@pytest.mark.parametrize("everything", [False, True])
def test_a_kill_loses_only_the_last_moments_and_the_rest_is_delivered(
    tmp_path: Path, everything: bool
) -> None:
    count = count_kept_values(
        "metricbus", tmp_path, calls=150, pace=0.01, patience=0, everything=everything
    )
    # The flush interval of 0.2 s is 20 calls. On a busy machine a flush can take up to a second.
    assert 50 <= count <= 150


def test_lightnings_csv_logger_alone_keeps_multiples_of_100_values(tmp_path: Path) -> None:
    name = "Lightning CSVLogger, alone"
    assert count_kept_values(name, tmp_path, calls=150, pace=0.0, everything=True) == 100


def test_the_page_lists_every_writer() -> None:
    text = PAGE.read_text()
    assert [name for name in WRITERS if f"| {name} |" not in text] == []
