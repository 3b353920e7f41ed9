"""Receipts: what is written is read back; anything else is refused with a way out."""

import json
from pathlib import Path

import pytest
from holdfast.errors import ResourceError
from holdfast.spool.job import Receipt, read_receipt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
RECEIPTS = st.builds(
    Receipt,
    job=st.text(),
    sample=st.text(),
    state=st.sampled_from(["done", "failed"]),
    error=st.text(),
    embeddings=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    run=st.text(),
    input_sha256=st.text(),
    counts=st.dictionaries(st.text(), st.integers(0, 2**62)),
    pool=st.dictionaries(st.text(), st.text() | NUMBERS),
    software=st.dictionaries(st.text(), st.text()),
    seconds=st.dictionaries(st.text(), NUMBERS),
    genetic_code=st.integers(0, 33),
    synthetic=st.lists(st.text()),
    failures=st.dictionaries(st.text(), st.text()),
    warnings=st.lists(st.text()),
    origins=st.lists(st.dictionaries(st.text(), st.text())),
    finished=st.text(),
    size_bytes=st.integers(-1, 2**62),
    mtime_ns=st.integers(-1, 2**62),
    url=st.text(),
)


@given(RECEIPTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_receipt_is_read_back_as_it_was_written(tmp_path: Path, written: Receipt) -> None:
    written.write(tmp_path / "receipt.json")
    assert read_receipt(tmp_path / "receipt.json") == written


def test_a_path_that_is_not_utf_8_can_stand_in_a_receipt(tmp_path: Path) -> None:
    written = Receipt("s-1", "s", "failed", error="/data/\udcff.fna: no such file")
    written.write(tmp_path / "receipt.json")
    read = read_receipt(tmp_path / "receipt.json")
    assert read is not None
    assert read.error.endswith(".fna: no such file")


def test_there_is_none_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_receipt(tmp_path / "receipt.json") is None
    assert read_receipt(tmp_path / "file" / "receipt.json") is None


GOOD = {
    "job": "s-1",
    "sample": "s",
    "state": "done",
    "error": "",
    "embeddings": "/a.h5",
    "run": "",
    "input_sha256": "",
    "same_as": "",
    "counts": {},
    "pool": {},
    "software": {},
    "seconds": {},
    "genetic_code": 0,
    "synthetic": [],
    "failures": {},
    "warnings": [],
    "origins": [],
    "finished": "",
    "size_bytes": -1,
    "mtime_ns": -1,
    "url": "",
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"done"',
        b"\xff\xfe",
        b"[" * 100_000,
        *(json.dumps({**GOOD, key: [1]}).encode() for key in GOOD),
        *(json.dumps({k: v for k, v in GOOD.items() if k != key}).encode() for key in GOOD),
        json.dumps({**GOOD, "state": "running"}).encode(),
        json.dumps({**GOOD, "extra": ""}).encode(),
    ],
)
def test_what_is_no_receipt_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(GOOD))
    assert read_receipt(path) == Receipt("s-1", "s", "done", embeddings="/a.h5")
    path.write_bytes(content)
    with pytest.raises(ResourceError, match=r"receipt\.json: not a receipt .*remove it"):
        read_receipt(path)
