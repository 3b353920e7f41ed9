"""Settings of a pool: defaults, and one clear message for every mistake."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from holdfast import settings
from holdfast.errors import ConfigError
from holdfast.settings import PoolSettings

SCHEMA = Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"
MODELS = {"esm2": "/models/esm2", "dnabert_s": "/models/dnabert_s"}
CONSUMERS = ("lanes", "lifecycle", "spool", "patience_s")  # keys that no pool reads


def read(tmp_path: Path, **content: Any) -> PoolSettings:
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, **content}))
    return settings.read(path)


def test_keys_and_defaults_are_those_of_the_config() -> None:
    pool = yaml.safe_load(SCHEMA.read_text())["properties"]["pool"]["properties"]
    elsewhere = {"models", "precision", "gpu"}
    defaults = {field.name: field.default for field in dataclasses.fields(PoolSettings)}
    assert {key: default for key, default in defaults.items() if key not in elsewhere} == {
        key: entry["default"] for key, entry in pool.items() if key not in CONSUMERS
    }
    assert defaults["precision"] == yaml.safe_load(SCHEMA.read_text())["properties"]["precision"]["default"]


def test_defaults_are_filled_in_and_values_kept(tmp_path: Path) -> None:
    assert read(tmp_path) == PoolSettings(models=MODELS)
    changed: dict[str, Any] = {
        "models": {"esm2": "/m"},
        "precision": "fp16",
        "device": "cuda",
        "gpu": 2,
        "threads": 3,
        "cpu_workers": 2,
        "tokens_per_batch": 64,
        "allocator": "",
        "memory_fraction": 1,
        "cache_clear_interval": 7,
        "batch_timeout_s": 12.5,
        "max_tasks_per_worker": 9,
        "idle_timeout_s": 0.5,
        "lease_s": 10,
    }
    assert read(tmp_path, **changed) == PoolSettings(**changed)
    assert changed.keys() == {field.name for field in dataclasses.fields(PoolSettings)}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = PoolSettings(models=MODELS, gpu=1, idle_timeout_s=None, memory_fraction=0.5)
    written.write(tmp_path / "pool.yaml")
    assert settings.read(tmp_path / "pool.yaml") == written


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        *(("precision", value, "must be one of auto, fp32, fp16") for value in ("bf16", None, ["fp32"], 16)),
        *(("device", value, "must be one of auto, cuda, cpu") for value in ("gpu", "cuda:0", None, {})),
        *(("gpu", value, "must be a whole number from 1, or null") for value in (0, -1, 1.0, "1", True, [1])),
        *(("threads", value, "must be a whole number from 1") for value in (0, None, 2.5, "2", True)),
        *(("tokens_per_batch", value, "must be a whole number from 64") for value in (63, None, 1e4, "64")),
        *(("allocator", value, "must be text") for value in (None, 1, ["a"])),
        *(("memory_fraction", v, "must be a number above 0") for v in (0, 1.01, -1, None, "0.5", True)),
        ("memory_fraction", float("nan"), "a number that is not finite"),
        ("batch_timeout_s", float("inf"), "a number that is not finite"),
        *(("cache_clear_interval", value, "must be a whole number, 0") for value in (-1, None, 0.5, "0", False)),
        *(("batch_timeout_s", value, "must be seconds above 0") for value in (0, -1, None, "1", True)),
        *(("max_tasks_per_worker", value, "must be a whole number from 1") for value in (0, 1.5, "1", True)),
        *(("idle_timeout_s", value, "must be seconds above 0, or null") for value in (0, -1, "600", True)),
        *(("models", value, "name the prepared directory") for value in (None, {}, [], "/m", 1, {"esm3": "/m"})),
        *(("models", {"esm2": value}, "") for value in (None, 1, ["/m"], True, "")),
        ("thread", 2, "unknown key 'thread'; did you mean threads?"),
        ("spool", "/s", "unknown key 'spool'; known are models, precision"),
        (7, 2, "unknown key 7; known are"),
    ],
)
def test_a_mistake_is_one_message_that_names_file_and_key(tmp_path: Path, key: Any, value: Any, wanted: str) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, "threads": 2, key: value}))
    with pytest.raises(ConfigError) as caught:
        settings.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert str(key) in message
    assert wanted in message
    assert "\n" not in message


def test_models_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text("threads: 2\n")
    with pytest.raises(ConfigError, match=r"pool\.yaml: models: name the prepared directory of esm2 and/or dnabert_s"):
        settings.read(tmp_path / "pool.yaml")


@pytest.mark.parametrize(
    "content", [b"", b"- a", b"a", b"{", b"\xff\xfe", b"gpu: 2001-13-45", b"[" * 5000, b"a: !!int ''"]
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pool.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"pool\.yaml: (not YAML|not UTF-8|needs keys and values)"):
        settings.read(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pool\.yaml: cannot be read: No such file"):
        settings.read(tmp_path / "pool.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        settings.read(tmp_path)
