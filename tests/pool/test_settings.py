"""Settings of a pool: defaults, and one clear message for every mistake."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from holdfast.errors import ConfigError
from holdfast.pool.settings import OF_THE_RUN, PoolSettings, pool_settings, read_settings

SCHEMA = Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"
MODELS = {"esm2": "/models/esm2", "dnabert_s": "/models/dnabert_s", "My-3rd_1": "/models/other"}


def read(tmp_path: Path, **content: Any) -> PoolSettings:
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, **content}))
    return read_settings(path)


def test_defaults_are_those_of_the_config_and_given_values_are_kept(tmp_path: Path) -> None:
    config = yaml.safe_load(SCHEMA.read_text())["properties"]
    defaults = {key: entry["default"] for key, entry in config["pool"]["properties"].items() if key not in OF_THE_RUN}
    defaults |= {key: config[key]["default"] for key in ("precision", "cache")} | {"models": MODELS, "gpu": None}
    defaults["threads"] = min(defaults["threads"], len(os.sched_getaffinity(0)))
    assert dataclasses.asdict(read(tmp_path)) == defaults
    changed: dict[str, Any] = {
        "models": {"esm2": "/m"},
        "precision": "fp16",
        "cache": "/shared/vectors",
        "device": "cuda",
        "gpu": 2,
        "share_gpu": True,
        "gpu_wait_s": 0,
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
        "prometheus": "/metrics/holdfast.prom",
    }
    assert dataclasses.asdict(read(tmp_path, **changed)) == changed


def test_threads_by_default_are_no_more_than_the_cpus_that_the_process_may_use(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert (read(tmp_path).threads, read(tmp_path, threads=3).threads) == (1, 3)
    finally:
        os.sched_setaffinity(0, allowed)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = pool_settings({"models": MODELS, "gpu": 1, "idle_timeout_s": None, "memory_fraction": 0.5}, "a test")
    written.write(tmp_path / "pool.yaml")
    assert read_settings(tmp_path / "pool.yaml") == written


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("precision", "tf32", "'precision' must be one of auto, fp32, fp16, bf16, is 'tf32'"),
        ("gpu", 0, "'gpu' must be at least 1, is 0"),
        ("gpu", "one", "'gpu' must be of type integer or null, is 'one'"),
        ("gpu", True, "'gpu' must be of type integer or null, is True"),
        ("memory_fraction", float("nan"), "memory_fraction: a number that is not finite"),
        ("models", None, "'models' must be of type object, is None"),
        ("models", {}, "'models' needs keys, at least 1, is {}"),
        ("models", {"a/b": "/m"}, "'models' is no name for a model: letters, digits, _ and -, is 'a/b'"),
        ("models", {"a" * 65: "/m"}, "'models' is no name for a model"),
        ("models", {"a\n": "/m"}, "'models' is no name for a model"),
        ("models", {"esm2": ""}, "'models.esm2' must be the directory of a prepared model, is ''"),
        ("models", {"esm2": ["/m"]}, "'models.esm2' must be of type string, is ['/m']"),
        ("thread", 2, "unknown key 'thread'; did you mean 'threads'?"),
        ("spool", "/s", "unknown key 'spool'; known are models, gpu, precision"),
        (7, 2, "unknown key '7'; known are"),
    ],
)
def test_a_mistake_is_one_message_that_names_file_and_key(tmp_path: Path, key: Any, value: Any, wanted: str) -> None:
    """The rules are those of the config, whose tests hold them; these are a pool's own."""
    path = tmp_path / "pool.yaml"
    path.write_text(yaml.safe_dump({"models": MODELS, "threads": 2, key: value}))
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"{path}: {wanted}")
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_and_models_are_required(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text("threads: 0\n")
    with pytest.raises(ConfigError) as caught:
        read_settings(tmp_path / "pool.yaml")
    models = "'models' is missing: by a name of your choice, the directory of a prepared model"
    assert str(caught.value) == f"{tmp_path}/pool.yaml: {models}; 'threads' must be at least 1, is 0"


@pytest.mark.parametrize(
    "content", [b"", b"- a", b"a", b"{", b"\xff\xfe", b"gpu: 2001-13-45", b"[" * 5000, b"a: !!int ''"]
)
def test_a_file_that_holds_no_settings_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pool.yaml"
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=r"pool\.yaml: (not YAML|it is UTF-16 text|line 1 is not UTF-8|needs keys and values)"
    ):
        read_settings(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pool\.yaml: cannot be read: No such file"):
        read_settings(tmp_path / "pool.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_settings(tmp_path)
