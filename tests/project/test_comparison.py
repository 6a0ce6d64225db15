"""What the comparison says of a kill, with fewer calls; its table is by `killed_writers.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.killed_writers import WRITERS, count_kept_values

PAGE = Path(__file__).parents[2] / "docs" / "comparison.md"


@pytest.mark.parametrize("everything", [False, True])
def test_a_kill_takes_a_moment_of_the_journal_and_the_sinks_have_the_rest(
    tmp_path: Path, everything: bool
) -> None:
    found = count_kept_values(
        "metricbus", tmp_path, calls=150, pace=0.01, patience=0, everything=everything
    )
    assert 50 <= found <= 150  # 0.2 s is 20 of them; a busy machine has a second


def test_lightnings_csv_logger_by_itself_has_whole_hundreds(tmp_path: Path) -> None:
    name = "Lightning CSVLogger, alone"
    assert count_kept_values(name, tmp_path, calls=150, pace=0.0, everything=True) == 100


def test_the_page_has_all_that_were_killed() -> None:
    text = PAGE.read_text()
    assert [name for name in WRITERS if f"| {name} |" not in text] == []
