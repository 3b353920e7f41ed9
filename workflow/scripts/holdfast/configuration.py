"""Config and sample sheet: validated by schema, with messages that name file, line and key."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

from . import documents
from .documents import DocumentError
from .errors import ConfigError
from .models import KINDS, MODELS

SHEET_LIMIT_BYTES = 2**24
SHOWN = 20
TAKEN = ("classifier", "failures.tsv", "summary.tsv")


@dataclass(frozen=True)
class Sample:
    """One line of the sample sheet."""

    sample: str
    fasta: str
    kind: str
    label: str


def with_defaults(config: Mapping[str, Any], schema_path: str | Path) -> dict[str, Any]:
    """Check a config against its schema and fill in the defaults.

    Raises:
        ConfigError: names every wrong key and says what it should be.
    """
    schema = _load(schema_path)
    where = "the config (config/config.yaml, --config)"
    try:
        documents.check(dict(config))
    except DocumentError as error:
        raise ConfigError(f"{where} is not valid: {error}") from None
    filled = _fill(dict(config), schema)
    problems = list(dict.fromkeys(_problems(schema, filled)))
    if problems:
        raise _several(f"{where} is not valid:", problems)
    return filled


def read_samples(sheet: str | Path, schema_path: str | Path) -> dict[str, Sample]:
    """Read the sample sheet, a TSV with a header line.

    Returns:
        The samples by name, in the order of the sheet.

    Raises:
        ConfigError: the sheet cannot be read, or a line is wrong; every wrong line is named.
    """
    schema = _load(schema_path)
    columns = list(schema["properties"])
    try:
        text = documents.read_text(sheet, SHEET_LIMIT_BYTES)
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
    samples: dict[str, Sample] = {}
    seen: dict[str, int] = {}
    problems = []
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells) or cells[0].startswith("#"):
            continue
        if len(cells) > len(header):
            problems.append(f"line {number}: {len(cells)} cells, but the header has {len(header)} columns")
            continue
        row = _fill({name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}, schema)
        found = [f"line {number}: {problem}" for problem in dict.fromkeys(_problems(schema, row))]
        if not found:
            if row["sample"] in seen:
                found = [f"line {number}: sample '{row['sample']}' stands already in line {seen[row['sample']]}"]
            else:
                seen[row["sample"]] = number
                samples[row["sample"]] = Sample(**row)
        problems += found
    if problems:
        raise _several(f"{sheet} is not valid:", problems)
    if not samples:
        raise ConfigError(f"{sheet}: holds no sample")
    return samples


def models_in_use(samples: Iterable[Sample]) -> list[str]:
    """The models that the kinds of these samples need."""
    needed = {model for entry in samples for model in KINDS[entry.kind].models}
    return [model for model in MODELS if model in needed]


def check(config: Mapping[str, Any], samples: Mapping[str, Sample]) -> None:
    """Check what no schema can: models for the kinds, labels for the training, files that must be there.

    Raises:
        ConfigError: names every sample concerned.
    """
    problems = []
    for entry in samples.values():
        where = f"{config['samples']}: sample '{entry.sample}'"
        lacking = [model for model in KINDS[entry.kind].models if model not in config["models"]]
        if lacking:
            problems.append(f"{where} is of kind {entry.kind}, which needs models.{lacking[0]}.weights in the config")
        if entry.label and entry.kind != "contigs":
            problems.append(f"{where} has a label, but only samples of kind contigs train the classifier")
        if entry.sample in TAKEN:
            problems.append(f"{where}: results/{entry.sample} is the workflow's own; choose another name")
    labels = {entry.label for entry in samples.values()} - {""}
    classifier = config["classifier"]
    if classifier is not None and not os.path.isfile(classifier):
        problems.append(f"classifier: {classifier} is not a file (looked in {os.getcwd()})")
    if classifier is None and len(labels) == 1:
        problems.append(
            f"{config['samples']}: every labelled sample is '{labels.pop()}'; training needs samples of both labels, "
            "virus and other (or set 'classifier' in the config, or remove the labels)"
        )
    if problems:
        raise _several("the config and the sample sheet do not fit:", problems)


def check_files(sheet: str, samples: Mapping[str, Sample]) -> None:
    """Check that every sequence file is there.

    Raises:
        ConfigError: names every sample whose file is missing.
    """
    missing = [entry for entry in samples.values() if not os.path.exists(entry.fasta)]
    if missing:
        lines = [f"sample '{entry.sample}': {entry.fasta} does not exist" for entry in missing]
        hint = f"correct the path (relative paths start at {os.getcwd()}) or remove the line"
        raise _several(f"{sheet}: sequence files are missing; {hint}:", lines)


def _several(heading: str, problems: list[str]) -> ConfigError:
    """One error of many problems, of which the first are named."""
    more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return ConfigError("\n  ".join([heading, *problems[:SHOWN], *more]))


def _load(path: str | Path) -> dict[str, Any]:
    schema: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return schema


def _fill(content: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    for key, entry in schema.get("properties", {}).items():
        if key not in content and "default" in entry:
            content[key] = entry["default"]
        if isinstance(content.get(key), Mapping) and "properties" in entry:
            content[key] = _fill(dict(content[key]), entry)
    return content


def _problems(schema: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[str]:
    errors = Draft202012Validator(schema).iter_errors(content)
    for error in sorted(errors, key=lambda error: [str(part) for part in error.absolute_path]):
        yield from _messages(error)


def _messages(error: ValidationError) -> Iterator[str]:
    path = ".".join(str(part) for part in error.absolute_path)
    entry = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties":
        known = list(entry["properties"])
        for key in error.instance:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
                yield f"unknown key '{path + '.' if path else ''}{str(key)[:80]}'; {hint}"
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                meaning = entry["properties"][key].get("description", "")
                yield f"'{path + '.' if path else ''}{key}' is missing: {meaning}"
    else:
        if error.validator == "enum":
            wanted = "must be one of " + ", ".join(map(str, error.validator_value))
        elif error.validator == "type":
            kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
            wanted = "must be of type " + " or ".join(kinds)
        elif error.validator in ("minimum", "exclusiveMinimum", "maximum", "minProperties"):
            wanted = {
                "minimum": "must be at least",
                "exclusiveMinimum": "must be above",
                "maximum": "must be at most",
                "minProperties": "needs keys, at least",
            }[error.validator] + f" {error.validator_value}"
        else:
            wanted = entry.get("x-rule", error.message)
        yield f"'{path}' {wanted}, is {error.instance!r:.200}"
