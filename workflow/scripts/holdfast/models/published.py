"""The files of a published checkpoint, and the digests by which it is known; without torch, for the plan of a run."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..documents import DocumentError, read_json
from ..errors import WeightsError

CONFIGURATION_FILE = "config.json"
SHARD = r"[A-Za-z0-9_.-]{1,200}\.(safetensors|bin)"


def weights_files(directory: Path) -> list[Path] | None:
    """The weights of a Hugging Face directory in the order of their names, safetensors before .bin, None without.

    Raises:
        WeightsError: an index that cannot be read or that names files elsewhere.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            weight_map = read_json_object(index).get("weight_map")
            shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
            if not shards or not all(isinstance(shard, str) and re.fullmatch(SHARD, shard) for shard in shards):
                raise WeightsError(f"{index}: 'weight_map' must name weights files beside it; download it again")
            return [directory / shard for shard in sorted(set(shards))]
    return None


def digest_files(files: Sequence[Path], expected: str | None) -> str:
    """sha256 (hex) over the files one after the other, compared with the expected one if there is one."""
    hashed = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as opened:
                while chunk := opened.read(2**22):
                    hashed.update(chunk)
        except FileNotFoundError:
            raise WeightsError(f"{file}: the index names it, but it is missing; download it again") from None
    found = hashed.hexdigest()
    if expected is not None and expected.strip().lower() != found:
        raise WeightsError(
            f"{files[0] if len(files) == 1 else files[0].parent}: sha256 is {found}, expected {expected}; "
            "download it again or correct the digest"
        )
    return found


def configuration_sha256(source: Path) -> str:
    """Digest of the configuration in a directory (hex); empty for a file, which has none beside it."""
    return digest_files([source / CONFIGURATION_FILE], None) if source.is_dir() else ""


def changed_since(source: Path, made_s: float) -> bool:
    """Whether any file of a checkpoint has a later time than ``made_s`` (since the epoch), whatever it holds."""
    files = [source] if source.is_file() else [source / CONFIGURATION_FILE, *(weights_files(source) or [])]
    return any(file.stat().st_mtime > made_s for file in files if file.exists())


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that comes with a checkpoint.

    Raises:
        WeightsError: it cannot be read, or is no object.
    """
    try:
        content = read_json(path)
    except DocumentError as error:
        raise WeightsError(f"{path}: {error}; download it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: not a JSON object; download it again")
    return content
