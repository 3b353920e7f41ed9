"""Small documents that somebody else has written, JSON and YAML, read without trust.

Text passes through :func:`parse_json` or :func:`parse_yaml`, which keep what they return small: limited in size, depth
and number of values, without references, so that nothing grows when it is walked or shown. :func:`fill` then makes a
dataclass of it, every field of its annotated type. Whatever is wrong is a :class:`DocumentError`, which the caller
turns into its own, with the file and what to do. Config, sample sheet and the settings of pools, which people write,
are checked by schema: :func:`with_defaults`, then :func:`schema_problems`.
"""

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from numbers import Integral
from os import PathLike, fspath
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

if TYPE_CHECKING:
    from jsonschema import ValidationError

JSON_LIMIT_BYTES = 2**24
YAML_LIMIT_BYTES = 2**16  # PyYAML reads about 100 kB a second
VALUES = 2**20
DEPTH = 32
LONGEST_PLACE = 400
_INTEGER_LIMIT = 2**63
_FORMATS = {  # by how a file of theirs begins
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16 text; save it as UTF-8: iconv -f utf-16 -t utf-8"),
    **dict.fromkeys((b"PK\3\4", b"PK\5\6"), "a zip archive or an Excel workbook; unpack it, or save it as text"),
    b"\xd0\xcf\x11\xe0": "an Office document; save it as text",
    **dict.fromkeys((b"7z\xbc\xaf", b"Rar!"), "an archive; unpack it"),
    **dict.fromkeys(
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x5d\0\0"), "compressed data; decompress it once"
    ),
    b"\x1f\x9d": "compressed by compress; decompress it: gunzip",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file itself: git lfs pull",
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html"), "a web page; download the file itself"),
    **dict.fromkeys((b"@HD\tVN:", b"@SQ\tSN:"), "a SAM file; convert it: samtools fasta"),
    b"BAM\1": "a BAM file; convert it: samtools fasta",
    b"CRAM": "a CRAM file; convert it: samtools fasta",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF file",
}
_TAR = slice(257, 262)
_NULLS = ("", "null", "none", "~")
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}  # YAML 1.1
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}

Kind = TypeVar("Kind")


class DocumentError(ValueError):
    """Text that is no such document, or a document that is not what is wanted."""


def other_version(found: object, known: int, otherwise: str) -> str:
    """What to say of a file whose ``format_version`` is not ours: what it is, and what to do.

    Args:
        found: Of the file.
        known: What this version reads.
        otherwise: What else one can do, or all if the file is older.
    """
    newer = "a newer one wrote it: update Holdfast, or " if isinstance(found, Integral) and int(found) > known else ""
    return f"format {found!s:.20}, this version of Holdfast reads {known}; {newer}{otherwise}"


def name_format(content: bytes) -> str:
    """What a file is, and what to do with it, where it is of a format that is often given in place of text.

    Args:
        content: How it begins, 262 bytes or more.

    Returns:
        Words to follow "is"; empty where it may be text in UTF-8.
    """
    named = next((name for mark, name in _FORMATS.items() if content.startswith(mark)), "")
    if not named and content[_TAR] == b"ustar":
        named = "a tar archive; unpack it"
    halves = content[0:8:2], content[1:8:2]
    if not named and bytes(4) in halves and any(0 not in half for half in halves):
        named = _FORMATS[b"\xff\xfe"]
    return named


def read_text(path: str | PathLike[str], limit_bytes: int) -> str:
    """Read a file of UTF-8 text.

    Raises:
        OSError: it cannot be read.
        DocumentError: it is larger than ``limit_bytes``, of another format or not UTF-8.
    """
    with open(path, "rb") as file:
        content = file.read(limit_bytes + 1)
    if named := name_format(content):
        raise DocumentError(f"it is {named}")
    if len(content) > limit_bytes:
        raise DocumentError(f"larger than {limit_bytes} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(
            f"line {line} is not UTF-8 text; perhaps it is Latin-1: iconv -f latin1 -t utf-8, or save it as UTF-8"
        ) from None


def read_json(path: str | PathLike[str]) -> Any:
    """Read a file of JSON; OSError and DocumentError as :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, JSON_LIMIT_BYTES))


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        DocumentError: not JSON, nested too deeply, or a value that :func:`check` refuses.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise DocumentError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise DocumentError(f"not JSON: {error}") from None
    check_values(content)
    return content


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags, anchors and aliases: what a person writes into a list of settings."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor is not None or event.tag is not None:
            raise yaml.composer.ComposerError(None, None, "tags, anchors and aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises:
        DocumentError: not YAML, with tags or references, nested too deeply, or a value that :func:`check` refuses.
    """
    try:
        content = yaml.load(text, _PlainLoader)
    except RecursionError:
        raise DocumentError("not YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise DocumentError(f"not YAML: {' '.join(str(error).split())}") from None
    check_values(content)
    return content


def check_values(content: Any, finite: bool = True) -> None:
    """Check every value of a parsed document, wherever it came from.

    Args:
        content: The document.
        finite: Whether every number must be finite.

    Raises:
        DocumentError: more than :data:`VALUES` values, counted each time they are referred to, or nested more than
            :data:`DEPTH` times; a whole number of more than 64 bits; one that is not finite; or text that is neither
            Unicode nor, as names of files may be, bytes in its disguise.
    """
    waiting, count = [("", 0, content)], 1
    while waiting:
        where, depth, value = waiting.pop()
        if isinstance(value, dict):
            children = [
                (_below(where, key) if isinstance(key, str) else where, depth + 1, entry)
                for key, entry in value.items()
            ]
            children += [(where, depth + 1, key) for key in value]
        elif isinstance(value, list):
            children = [(_below(where, number), depth + 1, entry) for number, entry in enumerate(value)]
        else:
            children = []
            _check_scalar(f"{where}: " if where else "", value, finite)
        count += len(children)
        if count > VALUES or depth > DEPTH:
            raise DocumentError(f"more than {VALUES} values, or nested more than {DEPTH} times")
        waiting.extend(children)


def _below(where: str, key: str | int) -> str:
    """The place of what a key, or the entry of a number, holds."""
    return f"{where}.{key!s:.80}".removeprefix(".") if len(where) < LONGEST_PLACE else where


def _check_scalar(where: str, value: object, finite: bool) -> None:
    if finite and isinstance(value, float) and not math.isfinite(value):
        raise DocumentError(f"{where}a number that is not finite")
    if isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
        raise DocumentError(f"{where}a whole number of more than 64 bits")
    if isinstance(value, str):
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise DocumentError(f"{where}text that is not Unicode") from None


def fill(kind: type[Kind], content: Any) -> Kind:
    """Make a dataclass of a JSON object with exactly its fields, each of its annotated type.

    Raises:
        DocumentError: names the field that is unknown, missing or of another type.
    """
    filled: Kind = _fit(kind, content, "")
    return filled


def _fit(wanted: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the annotation ``wanted`` describes it; ``where`` is its field, for the error."""
    if isinstance(wanted, UnionType):
        kinds = get_args(wanted)
        table = next((kind for kind in kinds if is_dataclass(kind) and isinstance(value, dict)), kinds[-1])
        fitting = next((kind for kind in kinds if kind is type(value)), table)
        return _fit(fitting, value, where)
    if is_dataclass(wanted):
        return _fit_dataclass(wanted, value, where)
    if get_origin(wanted) is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise DocumentError(f"{where or 'the document'} must hold names and values")
        return {key: _fit(get_args(wanted)[1], entry, _inside(where, key)) for key, entry in value.items()}
    if get_origin(wanted) is list:
        if not isinstance(value, list):
            raise DocumentError(f"{where or 'the document'} must be a list")
        return [_fit(get_args(wanted)[0], entry, where) for entry in value]
    if type(value) is wanted or (wanted is float and type(value) is int):
        return value
    raise DocumentError(f"{where} must be {_NAMES[wanted]}")


def _fit_dataclass(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise DocumentError(f"{where or 'the document'} must hold names and values")
    hints = get_type_hints(wanted)
    names = [field.name for field in fields(wanted)]
    for name in value.keys() - set(names):
        raise DocumentError(f"{_inside(where, str(name))[:80]} is unknown")
    for name in set(names) - value.keys():
        raise DocumentError(f"{_inside(where, name)} is missing")
    return wanted(**{name: _fit(hints[name], value[name], _inside(where, name)) for name in names})


def _inside(where: str, name: str) -> str:
    """Where a value is, on one line whatever its name holds."""
    shown = name if name.isprintable() else repr(name)
    return f"{where}.{shown}" if where else shown


def read_schema(path: str | PathLike[str]) -> dict[str, Any]:
    """Read a JSON schema of ours, written as YAML."""
    with open(path, encoding="utf-8") as file:
        schema: dict[str, Any] = yaml.safe_load(file)
    return schema


@cache
def own_schema(name: str) -> dict[str, Any]:
    """Read a schema of ``workflow/schemas`` once, where it lies: beside the scripts, or in the installed package."""
    here = Path(__file__).parent
    beside = here.parents[1] / "schemas" / name
    return read_schema(beside if beside.is_file() else here / "schemas" / name)


def plain(value: Any) -> Any:
    """What a program handed over, as a document would hold it: paths as text, numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, PathLike):
        return fspath(value)
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 else value


def with_defaults(content: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a document with the defaults of its schema where it says nothing, or null where that means nothing.

    Text in which only a number, true, false or null can be meant becomes that: Snakemake hands what stands in braces
    behind ``--config`` over as text.
    """
    content = dict(content)
    properties = schema.get("properties", {})
    for key, entry in properties.items():
        if content.get(key) is None and "default" in entry and (key not in content or not _takes_null(entry)):
            content[key] = entry["default"]
    for key in content:
        entry = properties.get(key, schema.get("additionalProperties"))
        if isinstance(entry, Mapping):
            content[key] = _suited(content[key], entry)
    return content


def _takes_null(schema: Mapping[str, Any]) -> bool:
    return "null" in schema.get("type", ()) or None in schema.get("enum", ())


def _suited(value: Any, schema: Mapping[str, Any]) -> Any:
    """A value as its schema wants it, as far as nothing else can be meant."""
    kinds = schema.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, Mapping):
        return with_defaults(value, schema)
    if isinstance(value, list):
        return [_suited(entry, schema["items"]) for entry in value] if "items" in schema else value
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        return int(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _NULLS and _takes_null(schema):
            return None
        if "integer" in kinds and re.fullmatch(r"[+-]?[0-9]{1,18}", word):
            return int(word)
        if "number" in kinds and re.fullmatch(
            r"[+-]?([0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})(e[+-]?[0-9]{1,2})?", word
        ):
            return float(word)
        if "boolean" in kinds and word in _TRUTHS:
            return _TRUTHS[word]
    return value


def schema_problems(content: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with a document, each once: the key and what it should be, in words."""
    from jsonschema import Draft202012Validator  # half a client's time to start, and clients check nothing

    errors = Draft202012Validator(schema).iter_errors(content)
    ordered = sorted(errors, key=lambda error: [str(part) for part in error.absolute_path])
    return list(dict.fromkeys(message for error in ordered for message in _messages(error)))


def _messages(error: "ValidationError") -> Iterator[str]:
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
            named = [str(value) for value in error.validator_value if value not in ("", None)]
            wanted = "must be one of " + ", ".join(named)
            wanted += " or empty" if len(named) < len(error.validator_value) else ""
            wanted = entry.get("x-rule", wanted)
        elif error.validator == "type":
            kinds = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
            wanted = "must be of type " + " or ".join(kinds)
            if "string" in kinds and isinstance(error.instance, int | float):
                wanted += " (write it in quotes)"
            elif "x-rule" in entry and {"object", "array"} & set(kinds):
                wanted = entry["x-rule"]
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
