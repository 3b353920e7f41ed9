"""Config and sample sheet: validated by schema, with messages that name file, line and key."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from ..documents import DocumentError, check_values, own_schema, plain, read_text, schema_problems, with_defaults
from ..errors import ConfigError, WeightsError, listed
from ..files import atomic_text, expanded
from ..models.registry import require_known
from ..results.presets import choose_rules
from ..spool.job import RESERVED

SHEET_LIMIT_BYTES = 2**24
LONGEST_LINE = 400
SEPARATORS = "\t,;"
TAKEN = (
    *("classifier", "contigs.tsv", "failures.tsv", "figures", "report.html", "ro-crate-metadata.json"),
    *("run.json", "runs", "summary.tsv", "virus.fna", "virus.fna.gz"),
)
HERE = "the config (config/config.yaml, --config)"
TRACKED = ("weights", "classifier", "container")
"""Keys of files whose age Snakemake looks at itself."""
LISTED = "the list 'samples' of the config"
COLUMNS = ("sample", "fasta", "kind", "label", "models")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Sample:
    """One line of the sample sheet, or one entry of the list in its place.

    Attributes:
        sample: Its name.
        fasta: Path of its file; of one at a URL that of the local copy, once :mod:`.remote` knows it.
        kind: Its kind.
        label: What it is known to hold, or nothing.
        models: Names of the models that embed it; nothing for all that fit.
        url: Of the file, if it lies at one.
        size_bytes: Size of the file at the URL, as the storage reports it; -1 where that is not known.
        mtime_ns: Its modification time (ns since the epoch); likewise.
        trouble: Why the storage reports nothing.
    """

    sample: str
    fasta: str
    kind: str
    label: str
    models: str
    url: str = ""
    size_bytes: int = -1
    mtime_ns: int = -1
    trouble: str = ""


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
        check_values(dict(config), finite=False)
        given = plain(config)
        check_values({key: value for key, value in given.items() if key != "samples"})  # those have lines of their own
    except DocumentError as error:
        raise ConfigError(f"{where} is not valid: {error}") from None
    schema = own_schema("config.schema.yaml")
    filled = with_defaults(given, schema)
    problems = schema_problems(filled, schema) or _expand_paths(filled)
    if problems:
        raise several(f"{where} is not valid:", problems)
    for entry in filled["models"].values():
        entry |= {key: entry[key] if isinstance(entry[key], list) else [entry[key]] for key in ("layers", "pooling")}
    return filled


def _expand_paths(config: dict[str, Any]) -> list[str]:
    """Expand what people abbreviate in the sources of a config that fits its schema; what is wrong with them."""
    places = [("samples", config, "samples"), ("classifier", config, "classifier"), ("container", config, "container")]
    places += [(f"pool.{key}", config["pool"], key) for key in ("spool", "prometheus")]
    places += [(f"models.{name}.weights", entry, "weights") for name, entry in config["models"].items()]
    problems = []
    for where, holder, key in places:
        path = holder[key]
        if not isinstance(path, str):
            continue
        try:
            holder[key] = expanded(path)
            if key == "weights":
                require_known(path)
        except (ConfigError, WeightsError) as error:
            problems.append(f"'{where}': {error}")
        if key in TRACKED and re.search(r"\{.*\}", path):
            problems.append(f"'{where}': {path} holds braces, which Snakemake takes for a pattern; name a link to it")
    return problems


def name_of(samples: str | Path | Sequence[object]) -> str:
    """What errors call the samples: the path of their sheet, or the list in the config."""
    return str(samples) if isinstance(samples, str | Path) else LISTED


def read_samples(samples: str | Path | Sequence[object]) -> dict[str, Sample]:
    """Read the samples.

    Args:
        samples: Path of the sample sheet, a table with a header line, or a list of its lines as mappings.

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
        made = _sample(given, schema)
        if isinstance(made, Sample) and made.sample in seen:
            made = [f"sample '{made.sample}' stands already in {seen[made.sample]}"]
        if isinstance(made, Sample):
            seen[made.sample] = where
            found[made.sample] = made
        else:
            problems += [f"{where}: {problem}" for problem in made]
    if problems:
        raise several(f"{name} is not valid:", problems)
    if not found:
        raise ConfigError(f"{name}: holds no sample")
    return found


def _sample(given: Mapping[Any, Any] | str, schema: Mapping[str, Any]) -> Sample | list[str]:
    """The sample of a line, or what is wrong with it; ``given`` is text where no line could be made of it."""
    if isinstance(given, str):
        return [given]
    row = {key: _cell(key, value) for key, value in given.items() if not _is_missing(value)}
    try:
        check_values(row)
    except DocumentError as error:
        return [str(error)]
    row = with_defaults(row, schema)
    if problems := schema_problems(row, schema):
        return problems
    try:
        return Sample(**row if URL.match(row["fasta"]) else row | {"fasta": expanded(row["fasta"])})
    except ConfigError as error:
        return [f"'fasta': {error}"]


def _cell(column: object, value: Any) -> Any:
    """A cell as the schema has it: whole numbers are names, kinds and labels in any case, models in a list."""
    if column == "sample" and type(value) is int and abs(value) < 2**63:
        return str(value)
    if column in ("kind", "label") and isinstance(value, str):
        return value.lower()
    if column == "models" and isinstance(value, list):
        return ",".join(map(str, value))
    return value


def _is_missing(value: object) -> bool:
    """Whether a cell is empty: null, or what pandas has in its place."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _lines(sheet: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Where each line of a sample sheet stands, with its cells by column, or with what is wrong with it."""
    try:
        text = read_text(sheet, SHEET_LIMIT_BYTES)
        if "\0" in text:
            raise DocumentError("a NUL byte; is this a text file?")
    except OSError as error:
        reason = f"{error.strerror}; set 'samples' in the config"
        raise ConfigError(f"{sheet}: the sample sheet cannot be read: {reason}") from None
    except ValueError as error:
        raise ConfigError(f"{sheet}: the sample sheet cannot be read: {error}") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first, separator, header = _find_header(lines, schema["required"])
    known = list(schema["properties"])
    unknown = [name for name in header if name not in known]
    missing = [name for name in schema["required"] if name not in header]
    if unknown or missing or len(set(header)) < len(header):
        raise ConfigError(
            f"{sheet}, line {first}: the columns must be {', '.join(known)} (with tabs, commas or semicolons between, "
            f"each once; {' and '.join(schema['required'])} are required); "
            f"found {', '.join(header)[:LONGEST_LINE] or 'nothing'}{_meant(unknown, known)}"
        )
    for number, line in enumerate(lines[first:], first + 1):
        if _says_nothing(line):
            continue
        try:
            cells = _split(line, separator)
        except csv.Error as error:
            yield f"line {number}", f"quotes that do not match ({error}); remove them"
            continue
        if len(cells) > len(header):
            yield f"line {number}", f"{len(cells)} cells, but the header has {len(header)} columns"
        elif any(cells):
            yield f"line {number}", {name: cell for name, cell in zip(header, cells, strict=False) if cell}


def _meant(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Which columns were probably meant by some that are not known; nothing where none is near."""
    near = [(name, get_close_matches(name.lower(), known, 1, 0.7)) for name in unknown]
    return "".join(f"; '{name[:80]}': did you mean '{found[0]}'?" for name, found in near if found)


def _find_header(lines: Sequence[str], required: Sequence[str]) -> tuple[int, str, list[str]]:
    """Number of a sheet's header, what separates its cells, and the names of its columns.

    It is the first line that says something; where that names no columns, a comment above it may, as in ``#sample``.
    """
    first = next((number for number, line in enumerate(lines, 1) if not _says_nothing(line)), len(lines))
    above = [number for number in range(first - 1, 0, -1) if lines[number - 1].strip()]
    for number in (first, *above):
        for separator in SEPARATORS:
            try:
                names = [name.lower() for name in _split(lines[number - 1].lstrip("#"), separator)]
            except csv.Error:
                continue
            if set(required) <= set(names):
                return number, separator, names
    return first, SEPARATORS[0], [name.strip() for name in lines[first - 1].split(SEPARATORS[0]) if name.strip()]


def _says_nothing(line: str) -> bool:
    """Whether a line is blank or a comment."""
    return not line.strip() or line.lstrip().lstrip('"').startswith("#")


def _split(line: str, separator: str) -> list[str]:
    """The cells of a line, quotes as spreadsheets write them; without the empty ones at its end.

    Raises:
        csv.Error: quotes that do not match.
    """
    (cells,) = csv.reader([line], delimiter=separator, strict=True)
    cells = [cell.strip() for cell in cells]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _listed(entries: Sequence[object]) -> Iterator[tuple[str, dict[Any, Any] | str]]:
    """As :func:`_lines`, of a list in the config."""
    for number, entry in enumerate(entries, 1):
        row = plain(entry) if isinstance(entry, Mapping) else f"must hold keys and values, is {entry!r:.200}"
        yield f"entry {number}", row


def write_samples(samples: Iterable[Sample], sheet: Path) -> None:
    """Write a sample sheet, unless it is there with just these lines."""
    lines = [asdict(sample) | {"fasta": sample.url or sample.fasta} for sample in samples]
    rows = [COLUMNS, *(tuple(line[column] for column in COLUMNS) for line in lines)]
    written = StringIO()
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows(rows)
    text = written.getvalue()
    if not sheet.exists() or sheet.read_text(encoding="utf-8", errors="surrogateescape") != text:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        with atomic_text(sheet) as file:
            file.write(text)


def labelled_files(sheet: Path, results: Path) -> list[tuple[Path, str]]:
    """Embeddings and label of every labelled sample of a sheet, those of viruses first."""
    samples = sorted(read_samples(sheet).values(), key=lambda entry: entry.label != "virus")
    return [(results / entry.sample / "embeddings.h5", entry.label) for entry in samples if entry.label]


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
    for key in ("max_fdr", "virus_share"):
        if config["calls"][key] is not None and not labels and calibration_beside(classifier) is None:
            problems.append(f"calls.{key}: without labelled samples nothing is calibrated; label some, or remove it")
    if problems:
        raise several("the config and the sample sheet do not fit:", problems)


def calibration_beside(classifier: str | None) -> str | None:
    """The calibration beside a classifier that was trained here; None where there is none."""
    beside = os.path.join(os.path.dirname(classifier or ""), "calibration.json")
    return beside if (classifier or "").endswith(".safetensors") and os.path.isfile(beside) else None


def check_files(name: str, samples: Mapping[str, Sample]) -> None:
    """Check that every sequence file is there, but for those at a URL.

    Raises:
        ConfigError: names every sample whose file is missing.
    """
    wrong = {entry.sample: reason for entry in samples.values() if not entry.url and (reason := _trouble(entry.fasta))}
    if wrong:
        lines = [f"sample '{sample}': {samples[sample].fasta} {reason}" for sample, reason in wrong.items()]
        hint = f"correct the path (relative paths start at {os.getcwd()}) or remove the line"
        raise several(f"{name}: sequence files are missing; {hint}:", lines)


def _trouble(path: str) -> str:
    """Why a path is none of a sequence file; empty where it is."""
    if os.path.isfile(path):
        return "" if os.access(path, os.R_OK) else "may not be read by you"
    if os.path.isdir(path):
        return "is a directory; a line has one file"
    if os.path.exists(path):
        return "is no regular file; a file is read more than once"
    if os.path.islink(path):
        return f"is a link to {os.readlink(path)}, which does not exist"
    if re.search(r"[*?,]", path):
        return "does not exist; a line has one file, without patterns"
    return "does not exist"


def several(heading: str, problems: list[str]) -> ConfigError:
    """One error of many problems, of which the first are named."""
    return ConfigError(listed(heading, problems))
