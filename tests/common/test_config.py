from __future__ import annotations

import argparse
import dataclasses
import json
from collections import UserDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import msgspec
import pydantic
import pytest

from metricbus import MetricBus
from metricbus._common.config import read_only_config


@dataclasses.dataclass
class DataclassConfig:
    lr: float
    betas: tuple[float, float]


@attrs.define
class AttrsConfig:
    lr: float
    betas: tuple[float, float]


class StructConfig(msgspec.Struct):
    lr: float
    betas: tuple[float, float]


class PydanticConfig(pydantic.BaseModel):
    lr: float
    betas: tuple[float, float]


CONFIG_OBJECTS = [
    DataclassConfig,
    AttrsConfig,
    StructConfig,
    PydanticConfig,
    argparse.Namespace,
    SimpleNamespace,
    dict,
    lambda **fields: UserDict(fields),
]


def stored_config(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())["config"]


@pytest.mark.parametrize("kind", CONFIG_OBJECTS)
def test_config_objects_are_stored_as_mappings_at_every_level(tmp_path: Path, kind: Any) -> None:
    optimizer = kind(lr=0.1, betas=(0.9, 0.99))
    config = kind(lr={"list": [optimizer]}, betas=optimizer) if kind is not PydanticConfig else None
    with MetricBus(id="flat", config=optimizer, sinks="", dir=tmp_path) as bus:
        assert bus.config == {"lr": 0.1, "betas": (0.9, 0.99)}
    plain = {"lr": 0.1, "betas": [0.9, 0.99]}
    assert stored_config(tmp_path / "flat") == plain
    config = config or {"lr": {"list": [optimizer]}, "betas": optimizer}
    with MetricBus(id="nested", config=config, sinks="", dir=tmp_path):
        pass
    assert stored_config(tmp_path / "nested") == {"lr": {"list": [plain]}, "betas": plain}


def test_config_is_a_copy_that_is_read_only_at_every_level() -> None:
    given: dict[str, Any] = {"optimizer": {"lr": 0.1}, "layers": [64, 64]}
    config = read_only_config(given)
    given["optimizer"]["lr"] = 1.0
    given["layers"].append(10)
    assert config == {"optimizer": {"lr": 0.1}, "layers": [64, 64]}
    with pytest.raises(TypeError):
        config["optimizer"]["lr"] = 1.0


@pytest.mark.parametrize("config", [[1], "lr=0.1", 3, DataclassConfig])
def test_error_for_a_config_without_names_says_what_is_accepted(config: object) -> None:
    kind = type(config).__name__
    with pytest.raises(TypeError, match=f"must be a mapping .* dataclass.*, not {kind}"):
        read_only_config(config)
