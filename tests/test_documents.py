"""Documents: what is small and plain is read, and everything that could grow or is of another form is refused."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from holdfast.documents import VALUES, DocumentError, check_values, fill, parse_json, parse_yaml, read_json, read_text


@dataclass(frozen=True)
class Inner:
    """In another."""

    pid: int


@dataclass(frozen=True)
class Outer:
    """Every kind of field."""

    name: str
    size: float
    many: dict[str, str | float]
    one: Inner
    flag: bool | None
    names: list[str]


GOOD = Outer("a\udcff", 1.5, {"a": "b", "c": 2}, Inner(3), None, ["x"])


def test_a_dataclass_is_filled_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(asdict(GOOD)))
    assert fill(Outer, read_json(tmp_path / "a.json")) == GOOD
    assert fill(Outer, asdict(GOOD) | {"size": 2, "flag": True}) == Outer(
        "a\udcff", 2, {"a": "b", "c": 2}, Inner(3), True, ["x"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "name must be text"),
        ({"size": True}, "size must be a number"),
        ({"size": "1"}, "size must be a number"),
        ({"many": []}, "many must hold names and values"),
        ({"many": {"a": None}}, r"many\.a must be a number"),
        ({"one": 5}, "one must hold names and values"),
        ({"one": {}}, r"one\.pid is missing"),
        ({"one": {"pid": 1.0}}, r"one\.pid must be a whole number"),
        ({"one": {"pid": 1, "more": 1}}, r"one\.more is unknown"),
        ({"flag": 1}, "flag must be null"),
        ({"names": "x"}, "names must be a list"),
        ({"names": [1]}, "names must be text"),
        ({"other": 1}, "other is unknown"),
    ],
)
def test_another_form_is_refused_by_the_name_of_the_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DocumentError, match=f"^{message}$"):
        fill(Outer, asdict(GOOD) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON: "),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ("[" * 40 + "]" * 40, "nested more than 32 times"),
        ('{"a": 1e999}', "a: a number that is not finite"),
        ('{"a": {"b": [NaN]}}', "a.b.0: a number that is not finite"),
        ('{"a": 9223372036854775808}', "a: a whole number of more than 64 bits"),
        ("1" * 5000, "not JSON: "),
        ('{"a": "\\ud800"}', "a: text that is not Unicode"),
        ("[" + "0," * VALUES + "0]", "more than 1048576 values"),
    ],
)
def test_json_that_is_large_deep_or_no_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    "text", ["a: &x 1", "a: *x", "a: !!int '1'", "a: !!python/object/apply:os.getpid []", "a: ! 1", "&a [*a]"]
)
def test_yaml_with_tags_or_references_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="tags, anchors and aliases are not allowed"):
        parse_yaml(text)


def test_plain_yaml_is_read() -> None:
    text = "a: 1\nb: [x, 2.5, null, true]\nc:\n  d: 'e'\n"
    assert parse_yaml(text) == {"a": 1, "b": ["x", 2.5, None, True], "c": {"d": "e"}}


def test_references_are_counted_each_time() -> None:
    laughs: list[object] = ["x"] * 9
    for _ in range(9):
        laughs = [laughs] * 9
    endless: list[object] = []
    endless.append(endless)
    for content in (laughs, endless):
        with pytest.raises(DocumentError, match="more than"):
            check_values(content)


def test_a_file_is_read_up_to_its_limit_and_as_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf{}")
    assert read_text(tmp_path / "a", 5) == "{}"
    with pytest.raises(DocumentError, match="larger than 4 bytes"):
        read_text(tmp_path / "a", 4)
    (tmp_path / "a").write_bytes("a\né".encode("latin-1"))
    with pytest.raises(DocumentError, match="line 2 is not UTF-8 text; perhaps it is Latin-1: iconv -f latin1"):
        read_text(tmp_path / "a", 5)
    (tmp_path / "a").write_bytes("a\n".encode("utf-16"))
    with pytest.raises(DocumentError, match="it is UTF-16 text; save it as UTF-8"):
        read_text(tmp_path / "a", 5)
