"""`metricbus export`: exact scalars in other formats."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

import metricbus
from metricbus import MetricBus, ScalarRow
from metricbus._cli.app import app
from metricbus._common.records import Number, Rewind
from metricbus._history import export as export_module
from metricbus._history.export import ExportFormat, ScalarSource, write_export
from metricbus._history.name_filter import NameFilter
from metricbus._importers.csv import unescape_name
from metricbus._journal.run import RunFolder, create_run
from metricbus._journal.segment_writer import SegmentWriter

TIME = 1_769_869_530_123_456_789
NUMBERS: dict[str, Number] = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "minus zero": -0.0,
    "largest": 2**63 - 1,
    "smallest": -(2**63),
    "odd": 2**53 + 1,
    "tenth": 0.1,
    "tiny": 5e-324,
    'a "quoted", name': 1,
    "=formula()": 2.0,
    "Ünïcödé\nline": 3,
}

numbers = st.floats() | st.integers(-(2**63), 2**63 - 1)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def row(step: int, values: dict[str, Number], **more: Any) -> ScalarRow:
    return ScalarRow(step=step, epoch=0, time=TIME + step, values=values, **more)


def run_of(root: Path, *rows: ScalarRow | Rewind, id: str = "r") -> RunFolder:
    folder, run = create_run(root, id=id, name="r", config={}, sinks=[])
    writer = SegmentWriter(folder.journal, run.id)
    writer.append(rows)
    writer.close()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_of(tmp_path, row(0, NUMBERS), row(7, {"tenth": 0.2}))


def same(actual: Any, expected: Number) -> bool:
    """Check for equal values of the same type, with the same sign of zero."""
    return type(actual) is type(expected) and repr(actual) == repr(expected)


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines(keepends=True)))


def test_csv_has_a_line_per_value_and_is_exact(run: RunFolder) -> None:
    result = export(run.path)
    assert result.exit_code == 0, result.output
    header, *lines = cells(result.stdout_bytes.decode())
    assert header == ["step", "epoch", "time", "name", "value"]
    assert lines[0][:3] == ["0", "0", "1769869530.123456789"]
    assert lines[-1] == ["7", "0", "1769869530.123456796", "tenth", "0.2"]
    for line, (name, value) in zip(lines, NUMBERS.items(), strict=False):
        assert line[3] == (f"'{name}" if name[0] in "=-" else name)
        assert same(int(line[4]) if type(value) is int else float(line[4]), value)


def test_pandas_reads_the_csv(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert export(run.path, "--name", "tenth", "--name", "nan", "--out", out).exit_code == 0
    frame = pd.read_csv(out)
    assert frame["value"].tolist()[1:] == [0.1, 0.2]
    assert math.isnan(frame["value"][0])
    assert frame["step"].tolist() == [0, 0, 7]


def test_json_is_one_document_and_is_exact(run: RunFolder) -> None:
    values = json.loads(export(run.path, "--format", "json").stdout)
    assert [item["name"] for item in values] == [*NUMBERS, "tenth"]
    assert values[-1] == {"step": 7, "epoch": 0, "time": TIME + 7, "name": "tenth", "value": 0.2}
    for item, value in zip(values, NUMBERS.values(), strict=False):
        is_text = isinstance(item["value"], str)
        assert same(float(item["value"]) if is_text else item["value"], value)


def test_json_without_values_is_an_empty_array(tmp_path: Path) -> None:
    assert json.loads(export(run_of(tmp_path).path, "--format", "json").stdout) == []


@pytest.fixture
def parquet(run: RunFolder, tmp_path: Path) -> Path:
    out = tmp_path / "out.parquet"
    result = export(run.path, "--format", "parquet", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"Wrote 13 values of 12 series to {out}\n"
    return out


def test_parquet_has_column_types_and_is_exact(parquet: Path) -> None:
    table = pq.read_table(parquet)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("step", "int64"),
        ("epoch", "int64"),
        ("time", "timestamp[ns, tz=UTC]"),
        ("name", "dictionary<values=string, indices=int32, ordered=0>"),
        ("value", "double"),
        ("integer", "int64"),
    ]
    rows = table.to_pylist()
    for row, (name, value) in zip(rows, NUMBERS.items(), strict=False):
        assert row["name"] == name
        assert same(row["value"], float(value))
        assert row["integer"] == (value if type(value) is int else None)
    assert table["time"].cast("int64").to_pylist()[-1] == TIME + 7


def test_pandas_and_polars_read_the_parquet(parquet: Path) -> None:
    frame = pd.read_parquet(parquet)
    assert frame.loc[frame["name"] == "tenth", "value"].tolist() == [0.1, 0.2]
    assert frame["time"].iloc[0].value == TIME
    polars_frame = pl.read_parquet(parquet)
    assert polars_frame.filter(pl.col("name").cast(pl.String) == "largest")[
        "integer"
    ].to_list() == [2**63 - 1]


def test_parquet_is_written_in_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_BATCH_VALUES", 100)
    folder = run_of(tmp_path, *(row(step, {f"n{step}": step, "x": 0.5}) for step in range(500)))
    out = tmp_path / "out.parquet"
    assert export(folder.path, "--format", "parquet", "--out", out).exit_code == 0
    table = pq.read_table(out)
    assert pq.ParquetFile(out).num_row_groups == 10
    assert table["name"].to_pylist()[:4] == ["n0", "x", "n1", "x"]
    assert table["integer"].to_pylist()[::2] == list(range(500))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(rows=st.lists(st.dictionaries(names, numbers, min_size=1, max_size=4), max_size=6))
def test_csv_and_json_are_exact_for_any_values(
    rows: list[dict[str, Number]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("run")
    folder = run_of(root, *(row(step, values) for step, values in enumerate(rows)))
    logged = [(name, value) for values in rows for name, value in values.items()]
    for format in (ExportFormat.CSV, ExportFormat.JSON):
        with open(root / "out", "wb") as file:
            write_export(ScalarSource(folder, NameFilter()), format, file)
        if format is ExportFormat.JSON:
            items = json.loads((root / "out").read_bytes())
            exported = [(item["name"], item["value"]) for item in items]
        else:
            with open(root / "out", newline="", encoding="utf-8") as text:
                lines = list(csv.reader(text))[1:]
            exported = [(unescape_name(line[3]), line[4]) for line in lines]
        assert len(exported) == len(logged)
        for (exported_name, exported_value), (name, value) in zip(exported, logged, strict=True):
            assert exported_name == name
            assert same(type(value)(exported_value), value)


def wide(folder: RunFolder) -> list[list[str]]:
    return cells(export(folder.path, "--format", "csv-wide").stdout_bytes.decode())


@pytest.mark.parametrize("last_step", [9, 0])
def test_wide_csv_equals_the_wide_table_of_the_history(tmp_path: Path, last_step: int) -> None:
    folder = run_of(
        tmp_path,
        row(0, {"a": 1, "b": 0.5}),
        row(0, {"c": math.nan}),
        row(1, {"a": 2}),
        row(1, {"a": 3}),
        row(last_step, {"b": 2**63 - 1}),
    )
    history = metricbus.read(folder.path).wide()
    lines = [["" if cell is None else str(cell) for cell in line] for line in history.rows]
    assert wide(folder) == [history.columns, *lines]


def test_superseded_values_are_exported_only_on_request(tmp_path: Path) -> None:
    folder = run_of(
        tmp_path,
        *(row(step, {"x": step}) for step in range(4)),
        Rewind(step=1, epoch=0, time=TIME + 10),
        row(2, {"x": 20}),
    )
    for arguments, expected in (([], [0, 1, 20]), (["--superseded"], [0, 1, 2, 3, 20])):
        items = json.loads(export(folder.path, "--format", "json", *arguments).stdout)
        assert [item["value"] for item in items] == expected


def test_names_have_rank_prefixes(tmp_path: Path) -> None:
    folder = run_of(tmp_path, row(0, {"x": 1}), row(0, {"x": 2}, rank=1))
    values = json.loads(export(folder.path, "--format", "json", "--name", "x").stdout)
    assert [item["name"] for item in values] == ["x", "rank1/x"]


def test_a_live_run_can_be_exported(tmp_path: Path) -> None:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1.0)
        bus.flush()
        assert len(json.loads(export(tmp_path / "r", "--format", "json").stdout)) == 1


def test_damaged_lines_are_reported(run: RunFolder) -> None:
    with open(run.journal / "0001.jsonl", "ab") as file:
        file.write(b"not a record\n{torn")
    result = export(run.path)
    assert result.exit_code == 0
    assert result.stderr == "metricbus: Damaged journal lines skipped: 1\n"


def test_an_unknown_name_fails_and_keeps_the_existing_file(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    out.write_text("mine")
    result = export(run.path, "--name", "tent", "--out", out)
    assert result.exit_code == 2
    assert "No series matches 'tent'. Did you mean 'tenth'" in result.stderr
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_unwritable_file_fails(run: RunFolder, tmp_path: Path) -> None:
    result = export(run.path, "--out", tmp_path / "no" / "folder.csv")
    assert result.exit_code == 2
    assert "No such file or directory" in result.stderr


def test_parquet_requires_an_output_file(run: RunFolder) -> None:
    result = export(run.path, "--format", "parquet")
    assert result.exit_code == 2
    assert "--out run.parquet" in result.stderr


def test_parquet_without_pyarrow_fails_with_the_install_command(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricbus._common.optional_imports.find_spec", lambda name: None)
    result = export(run.path, "--format", "parquet", "--out", tmp_path / "out.parquet")
    assert result.exit_code == 2
    assert "pip install pyarrow" in result.stderr


def test_a_closed_pipe_ends_the_export_quietly(tmp_path: Path) -> None:
    folder = run_of(tmp_path, *(row(step, {"a name": step}) for step in range(20_000)))
    command = f"{sys.executable} -m metricbus export {folder.path} | head -n 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("step,epoch,time,name,value\n", "")


def test_a_folder_that_is_not_a_run_fails(tmp_path: Path) -> None:
    result = export(tmp_path)
    assert result.exit_code == 2
    assert "is not a run" in result.stderr


def test_help_has_an_example() -> None:
    assert "Example: metricbus export" in export("--help").stdout
