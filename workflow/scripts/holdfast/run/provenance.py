"""Where results come from: one record a run, ``results/runs/RUN.json``, and the latest as ``results/run.json``.

A run leaves what it knows at its start in its plan's directory (:func:`begin`). When it ends, well or badly, that is
joined with the receipts of its samples and the digests of the tables it wrote (:func:`finish`). A run that did nothing
leaves no record; for a run that was killed, the next one on that host writes it. An embeddings file leads to its record
by the name of its job, every other file by its digest; docs/provenance.md says how.
"""

import hashlib
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..documents import DocumentError, read_json
from ..errors import ERROR, HoldfastError, ResourceError
from ..files import atomic_text
from ..models.registry import read_prepared
from ..spool.job import Receipt, read_receipt, software

FORMAT = "holdfast-run"
FORMAT_VERSION = 1
LATEST = "run.json"
RUNS = "runs"
CRATE = "ro-crate-metadata.json"
_START_FILE = "start.json"


def begin_record(
    directory: Path,
    results: Path,
    config: Mapping[str, Any],
    samples: Mapping[str, Any],
    pending: Iterable[str],
    models: Mapping[str, str],
) -> None:
    """Note what a run knows at its start.

    Args:
        directory: Of its plan.
        results: Where its results go.
        config: The config, with defaults.
        samples: The sample sheet: dataclasses by name.
        pending: The samples without a valid receipt.
        models: Where the prepared weights of each model are, or will be.
    """
    host = socket.gethostname()
    start = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{host}-{os.getpid()}",
        "host": host,
        "directory": str(Path.cwd()),
        "results": str(results),
        "command": shlex.join(sys.argv),
        "began": _now(),
        "ended": None,
        "seconds": None,
        "software": software(["snakemake", "pyyaml", "jsonschema"]),
        "config": dict(config),
        "models": {model: str(Path(path).absolute()) for model, path in models.items()},
        "samples": {name: asdict(sample) for name, sample in samples.items()},
        "pending": sorted(pending),
    }
    with atomic_text(directory / _START_FILE) as file:
        json.dump(start, file)


def run_of(directory: Path) -> str:
    """Name of the run whose plan is in a directory.

    Raises:
        ResourceError: the run does not go on any more.
    """
    try:
        return str(read_json(directory / _START_FILE)["run"])
    except OSError as error:
        raise ResourceError(f"{directory}: the run that this is a job of has ended ({error.strerror})") from None


def finish_record(directory: Path, ended: bool) -> None:
    """Write the record of a run, if there is anything in the results that comes from it.

    It comes when all is done and must spoil nothing: a record that cannot be written is a line on the terminal.

    Args:
        directory: Of its plan, where :func:`begin` has left its note.
        ended: Whether the run comes to its end now; otherwise it was killed some time ago.
    """
    try:
        start = read_json(directory / _START_FILE)
        began_s = (directory / _START_FILE).stat().st_mtime
        _write(start, Path(start["directory"], start["results"]), began_s, ended)
    except FileNotFoundError:
        return  # killed before it began
    except (OSError, DocumentError) as error:
        print(f"{ERROR}the record of this run cannot be written: {error}", file=sys.stderr)


def _write(start: dict[str, Any], results: Path, began_s: float, ended: bool) -> None:
    run, pending = start["run"], set(start.pop("pending"))
    receipts = {name: _receipt(results / name, began_s if name in pending else 0.0) for name in start["samples"]}
    computed = [outcome for outcome in receipts.values() if outcome and outcome.run == run]
    outputs = {
        str(Path(start["results"], path.relative_to(results))): sha256(path)
        for path in _tables(results, start["samples"], began_s)
    }
    if not computed and not outputs:
        return
    samples = {name: _sample(start["samples"][name], outcome, run) for name, outcome in receipts.items()}
    models = {model: _model(Path(path)) for model, path in start["models"].items()}
    if ended:
        now = _now()
        seconds = (datetime.fromisoformat(now) - datetime.fromisoformat(start["began"])).total_seconds()
        start |= {"ended": now, "seconds": seconds}
    record = {
        **start,
        "models": models,
        "synthetic_weights": sorted(model for model, known in models.items() if known.get("synthetic")),
        "classifier_sha256": _classifier_sha256(start),
        "pools": describe_pools(computed),
        "reused": {
            "samples": sum(sample["state"] == "reused" for sample in samples.values()),
            "vectors": sum(outcome.counts.get("inherited", 0) for outcome in computed),
            "cached": sum(outcome.counts.get("cached", 0) for outcome in computed),
            "origins": _origins(computed),
        },
        "samples": samples,
        "outputs": outputs,
    }
    (results / RUNS).mkdir(exist_ok=True)
    for path in (results / RUNS / f"{run}.json", results / LATEST):
        with atomic_text(path) as file:
            file.write(json.dumps(record, indent=2) + "\n")


def _origins(outcomes: Iterable[Receipt]) -> list[dict[str, str]]:
    """Where the vectors come from that were found in the shared cache, each run and pool once."""
    return list({repr(origin): origin for outcome in outcomes for origin in outcome.origins}.values())


def _receipt(directory: Path, since_s: float) -> Receipt | None:
    """The receipt of a sample; None if there is none that is readable and was put there since a moment."""
    path = directory / "receipt.json"
    try:
        return read_receipt(path) if path.exists() and path.stat().st_mtime >= since_s else None
    except HoldfastError:
        return None


def _sample(entry: dict[str, str], outcome: Receipt | None, run: str) -> dict[str, Any]:
    """What a record says of a sample: of one that this run handed in everything, of another where to look."""
    if outcome is None:
        return {**entry, "state": "missing"}
    known = {**entry, "run": outcome.run, "job": outcome.job, "input_sha256": outcome.input_sha256}
    if outcome.run != run:
        return {**known, "state": "reused"}
    ended = {name: getattr(outcome, name) for name in ("state", "error", "failures", "counts", "seconds")}
    return {**known, "pool": outcome.pool.get("id", ""), **ended}


def describe_pools(outcomes: Iterable[Receipt]) -> dict[str, dict[str, Any]]:
    """The pools that left these receipts, by id, each as the last of them describes it, with ``device_busy``.

    That is the share of the time in which its devices were ready, and a job open, that they worked; None if they never
    were.
    """
    found: dict[str, dict[str, Any]] = {}
    for outcome in sorted(outcomes, key=lambda outcome: number(outcome.pool.get("ready_s"))):
        device_s, ready_s = (number(outcome.pool.get(name)) for name in ("device_s", "ready_s"))
        device_busy = round(min(1.0, device_s / ready_s), 4) if ready_s > 0 else None
        name = str(outcome.pool.get("id", ""))
        found[name] = {**outcome.pool, "device_busy": device_busy, "software": outcome.software}
    return found


def number(value: object) -> float:
    """A number of a receipt; 0 where there is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def _model(directory: Path) -> dict[str, Any]:
    try:
        known = asdict(read_prepared(directory))
    except HoldfastError:
        return {"directory": str(directory)}  # the run ended before it was prepared
    return {"directory": str(directory), **known}


def _classifier_sha256(start: dict[str, Any]) -> str | None:
    """Digest of a classifier that the config names; that of one trained here stands among the outputs."""
    named = start["config"].get("classifier")
    path = Path(start["directory"], named) if named else None
    return sha256(path) if path and path.is_file() else None


def _tables(results: Path, samples: Iterable[str], began_s: float) -> Iterator[Path]:
    """The files of the results, other than embeddings, that were written since a moment; those of no sample too."""
    known = set(samples)
    for entry in sorted(results.iterdir()) if results.is_dir() else []:
        others = entry.name != RUNS and not (entry / "receipt.json").exists()
        files = [entry] if entry.is_file() else entry.rglob("*") if entry.name in known or others else []
        for path in sorted(files):
            passed = path.name in (LATEST, CRATE, "receipt.json") or path.suffix == ".h5" or path.name.startswith(".")
            if path.is_file() and not passed and path.stat().st_mtime >= began_s:
                yield path


def sha256(path: Path) -> str:
    """SHA-256 of a file (hex)."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
