"""Settings of a pool: what ``holdfast serve --config POOL.yaml`` reads.

The workflow writes this file from its own config; by hand it is written for a pool that several runs use. Keys,
defaults and rules stand in ``schemas/config.schema.yaml``, under ``pool``, ``precision`` and ``cache``; a pool needs
two more, :data:`OWN`, and reads none of :data:`OF_THE_RUN`.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..documents import (
    YAML_LIMIT_BYTES,
    DocumentError,
    own_schema,
    parse_yaml,
    read_text,
    schema_problems,
    with_defaults,
)
from ..errors import ConfigError
from ..files import atomic_text, expanded
from ..spool.job import MODEL_PATTERN

OF_THE_RUN = ("replicas", "lifecycle", "spool", "patience_s")
PREPARED = {
    "type": "string",
    "pattern": r"^[^\x00]+$",
    "x-rule": "must be the directory of a prepared model",
}
OWN: dict[str, Any] = {
    "models": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": PREPARED,
        "propertyNames": {
            "pattern": rf"^{MODEL_PATTERN.pattern}$(?!\n)",
            "x-rule": "is no name for a model: letters, digits, _ and -",
        },
        "description": "by a name of your choice, the directory of a prepared model",
    },
    "gpu": {"type": ["integer", "null"], "minimum": 1, "default": None},
}


@dataclass(frozen=True)
class PoolSettings:
    """The settings of a pool; what they mean, and their defaults, stand in the schema.

    Attributes:
        models: Directory of each prepared model.
        gpu: How many of the visible CUDA devices to use; None for all.
        cache: Directory of the shared cache of vectors; None without.
    """

    models: dict[str, str]
    gpu: int | None
    precision: str
    cache: str | None
    device: str
    share_gpu: bool
    gpu_wait_s: float
    threads: int
    cpu_workers: int
    tokens_per_batch: int | None
    allocator: str
    memory_fraction: float
    cache_clear_interval: int
    batch_timeout_s: float
    max_tasks_per_worker: int | None
    idle_timeout_s: float | None
    lease_s: float
    prometheus: str | None

    def write(self, path: Path) -> None:
        """Write as JSON, which is YAML, too; whole or not at all."""
        with atomic_text(path) as file:
            json.dump(asdict(self), file, indent=2)


def usable_cpus() -> int:
    """CPUs that this process may use, such as those of its job on Slurm; not all that the host has."""
    return len(os.sched_getaffinity(0))


def pool_settings(content: dict[str, Any], where: str | Path) -> PoolSettings:
    """Check settings and fill in the defaults; that of ``threads`` is never more than this process may use.

    Args:
        content: By key.
        where: What errors call them.

    Raises:
        ConfigError: names every wrong key and says what it should be.
    """
    config = own_schema("config.schema.yaml")["properties"]
    known = {key: entry for key, entry in config["pool"]["properties"].items() if key not in OF_THE_RUN}
    properties = {**OWN, "precision": config["precision"], "cache": config["cache"], **known}
    schema = {"type": "object", "additionalProperties": False, "required": ["models"], "properties": properties}
    filled = with_defaults(content, schema)
    problems = schema_problems(filled, schema)
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems)}")
    if "threads" not in content:
        filled["threads"] = min(filled["threads"], usable_cpus())
    filled["models"] = {name: expanded(directory) for name, directory in filled["models"].items()}
    filled["prometheus"] = filled["prometheus"] and expanded(filled["prometheus"])
    return PoolSettings(**filled)


def read_settings(path: str | Path) -> PoolSettings:
    """Read the settings of a pool.

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it.
    """
    try:
        content = parse_yaml(read_text(path, YAML_LIMIT_BYTES))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: needs keys and values, such as 'models:'")
    return pool_settings(content, path)
