"""Config and sample sheet: validated by schema, with messages that name file, line and key."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

from ..documents import DocumentError, check_values, own_schema, read_text, schema_problems, with_defaults
from ..errors import ConfigError
from ..files import atomic_text
from ..results.presets import choose_rules
from ..spool.job import RESERVED

SHEET_LIMIT_BYTES = 2**24
SHOWN = 20
TAKEN = (
    *("classifier", "contigs.tsv", "failures.tsv", "figures", "report.html", "ro-crate-metadata.json"),
    *("run.json", "runs", "summary.tsv", "virus.fna", "virus.fna.gz"),
)
HERE = "the config (config/config.yaml, --config)"
LISTED = "the list 'samples' of the config"


@dataclass(frozen=True)
class Sample:
    """One line of the sample sheet, or one entry of the list in its place."""

    sample: str
    fasta: str
    kind: str
    label: str
    models: str


def check_config(config: Mapping[str, Any], where: str = HERE) -> dict[str, Any]:
    """Check a config against its schema and fill in the defaults.

    Args:
        config: The config.
        where: What to call it in an error.

    Raises:
        ConfigError: names every wrong key and says what it should be.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where} is not valid: it must hold keys and values, is {config!r:.200}")
    try:
        check_values(dict(config))
    except DocumentError as error:
        raise ConfigError(f"{where} is not valid: {error}") from None
    schema = own_schema("config.schema.yaml")
    filled = with_defaults(config, schema)
    problems = schema_problems(filled, schema)
    if problems:
        raise _several(f"{where} is not valid:", problems)
    for entry in filled["models"].values():
        entry |= {key: entry[key] if isinstance(entry[key], list) else [entry[key]] for key in ("layers", "pooling")}
    return filled


def name_of(samples: str | Path | Sequence[object]) -> str:
    """What errors call the samples: the path of their sheet, or the list in the config."""
    return str(samples) if isinstance(samples, str | Path) else LISTED


def read_samples(samples: str | Path | Sequence[object]) -> dict[str, Sample]:
    """Read the samples.

    Args:
        samples: Path of the sample sheet, a TSV with a header line, or a list of its lines as mappings.

    Returns:
        The samples by name, in their order.

    Raises:
        ConfigError: the sheet cannot be read, or a line is wrong; every wrong line is named.
    """
    schema = own_schema("samples.schema.yaml")
    name = name_of(samples)
    rows = _lines(name, schema) if isinstance(samples, str | Path) else _listed(samples)
    found: dict[str, Sample] = {}
    seen: dict[str, str] = {}
    problems = []
    for where, given in rows:
        if isinstance(given, str):
            problems.append(f"{where}: {given}")
            continue
        row = with_defaults(given, schema)
        wrong = [f"{where}: {problem}" for problem in schema_problems(row, schema)]
        if not wrong and row["sample"] in seen:
            wrong = [f"{where}: sample '{row['sample']}' stands already in {seen[row['sample']]}"]
        if not wrong:
            seen[row["sample"]] = where
            found[row["sample"]] = Sample(**row)
        problems += wrong
    if problems:
        raise _several(f"{name} is not valid:", problems)
    if not found:
        raise ConfigError(f"{name}: holds no sample")
    return found


def _lines(sheet: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Where each line of a sample sheet stands, with its cells by column, or with what is wrong with it."""
    columns = list(schema["properties"])
    try:
        text = read_text(sheet, SHEET_LIMIT_BYTES)
        lines = [line.rstrip("\r\n").split("\t") for line in StringIO(text, newline="")]
        if "\0" in text:
            raise DocumentError("a NUL byte; is this a text file?")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{sheet}: the sample sheet cannot be read: {reason}; set 'samples' in the config") from None
    header = lines[0] if lines else []
    unknown = [name for name in header if name not in columns]
    missing = [name for name in schema["required"] if name not in header]
    if unknown or missing or len(set(header)) < len(header):
        raise ConfigError(
            f"{sheet}, line 1: the columns must be {', '.join(columns)} (tab-separated, each once; "
            f"{' and '.join(schema['required'])} are required); found {', '.join(header) or 'nothing'}"
        )
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
            continue
        if len(cells) > len(header):
            yield f"line {number}", f"{len(cells)} cells, but the header has {len(header)} columns"
        else:
            row = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
            yield f"line {number}", row


def _listed(entries: Sequence[object]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """As :func:`_lines`, of a list in the config."""
    for number, entry in enumerate(entries, 1):
        row = dict(entry) if isinstance(entry, Mapping) else f"must hold keys and values, is {entry!r:.200}"
        yield f"entry {number}", row


def write_samples(samples: Iterable[Sample], sheet: Path) -> None:
    """Write a sample sheet, unless it is there with just these lines."""
    rows = [tuple(field.name for field in fields(Sample)), *map(astuple, samples)]
    text = "".join("\t".join(row) + "\n" for row in rows)
    if not sheet.exists() or sheet.read_text(encoding="utf-8", errors="surrogateescape") != text:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        with atomic_text(sheet) as file:
            file.write(text)


def check_fit(config: Mapping[str, Any], samples: Mapping[str, Sample]) -> None:
    """Check what no schema can: models for the kinds, labels for the training, files that must be there.

    Raises:
        ConfigError: names every sample concerned.
    """
    problems = []
    try:
        choose_rules(config["calls"])
    except ConfigError as error:
        problems.append(str(error))
    name = name_of(config["samples"])
    for entry in samples.values():
        where = f"{name}: sample '{entry.sample}'"
        unknown = [model for model in entry.models.replace(",", " ").split() if model not in config["models"]]
        if unknown:
            known = ", ".join(config["models"])
            problems.append(f"{where} names the model {unknown[0]}, but the config has {known}")
        if entry.label and entry.kind != "contigs":
            problems.append(f"{where} has a label, but only samples of kind contigs train the classifier")
        if entry.sample in TAKEN:
            problems.append(f"{where}: results/{entry.sample} is the workflow's own; choose another name")
    taken = [model for model in config["models"] if model in RESERVED]
    problems += [f"models.{model}: the name is taken by a column of the results; choose another" for model in taken]
    for role, model in config["method"].items():
        if model is not None and model not in config["models"]:
            problems.append(f"method.{role}: {model} is none of the models, which are {', '.join(config['models'])}")
    labels = {entry.label for entry in samples.values()} - {""}
    classifier = config["classifier"]
    if classifier is not None and not os.path.isfile(classifier):
        problems.append(f"classifier: {classifier} is not a file (looked in {os.getcwd()})")
    if len(labels) == 1:
        way = "training needs" if classifier is None else "to calibrate the classifier takes"
        otherwise = "or remove the labels" if classifier else "or set 'classifier' in the config, or remove the labels"
        problems.append(
            f"{name}: every labelled sample is '{min(labels)}'; {way} samples of both labels, "
            f"virus and non-viral ({otherwise})"
        )
    if config["calls"]["max_fdr"] is not None and not labels and calibration_beside(classifier) is None:
        problems.append("calls.max_fdr: without labelled samples nothing is calibrated; label some, or remove the key")
    if problems:
        raise _several("the config and the sample sheet do not fit:", problems)


def calibration_beside(classifier: str | None) -> str | None:
    """The calibration beside a classifier that was trained here; None where there is none."""
    beside = os.path.join(os.path.dirname(classifier or ""), "calibration.json")
    return beside if (classifier or "").endswith(".safetensors") and os.path.isfile(beside) else None


def check_files(name: str, samples: Mapping[str, Sample]) -> None:
    """Check that every sequence file is there.

    Raises:
        ConfigError: names every sample whose file is missing.
    """
    missing = [entry for entry in samples.values() if not os.path.exists(entry.fasta)]
    if missing:
        lines = [f"sample '{entry.sample}': {entry.fasta} does not exist" for entry in missing]
        hint = f"correct the path (relative paths start at {os.getcwd()}) or remove the line"
        raise _several(f"{name}: sequence files are missing; {hint}:", lines)


def _several(heading: str, problems: list[str]) -> ConfigError:
    """One error of many problems, of which the first are named."""
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return ConfigError("\n  ".join([heading, *problems[:SHOWN], *more]))
