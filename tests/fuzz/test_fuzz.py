"""Nothing in a file that somebody else has written does harm: valid, mutated and hostile ones through every parser."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import seeds
from tests.fuzz.parsers import READERS, Parser, parsers

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "workflow/scripts")))}
MEMORY_BYTES = 2 * 2**30
LONGEST_MESSAGE = 20_000
EXAMPLES = 200
SPLICED = sorted(
    READERS.keys() - {"published_tokenizer", "summary", "esmc_config", "t5_config"}
)  # whose files others have too
PIECES = [
    *(
        b"\0",
        b"\n",
        b"\t",
        b"\r",
        b" ",
        b",",
        b":",
        b"-",
        b"#",
        b"?",
        b"<<: ",
        b"&a ",
        b"*a",
        b"!!bool x",
        b"!!python/x",
    ),
    *(b"[", b"]", b"{", b"}", b"[[[[", b"]]]]", b'"', b"'", b"\\ud800", b"\\u0000", b"null", b"true", b"{}", b"[]"),
    *(b"0", b"-1", b"1e999", b"NaN", b".nan", b"-Infinity", b"0x", b"9" * 30, b"9" * 5000, b"0x" + b"f" * 5000),
    *(b">", b"@", b"+", b">a\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\xed\xa0\x80", b"\x1f\x8b", b"PK\x05\x06", b"\x89HDF"),
    *(b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\xff\xff\xff\x7f", b"\0" * 512, b"A" * 5000),
    *(b"\x80\x02", b"\x80\x04", b"cos\nsystem\n", b"(", b"t", b"R", b"b", b"}", b"]", b".", b"Q", b"h\0", b"q\0"),
    b"r\xff" * 3,
]


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A valid file with bytes flipped, parts cut out, repeated, moved or brought in from others, or the end lost."""
    content = draw(st.sampled_from(seeds.seeds()[name]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        stop = min(len(content), start + draw(st.sampled_from([0, 1, 2, 4, 8, 20, 100, 1000])))
        part = content[start:stop]
        match draw(st.sampled_from(["flip", "drop", "repeat", "piece", "bytes", "splice", "truncate"])):
            case "flip":
                part = bytes(byte ^ draw(st.integers(1, 255)) for byte in part[:8]) + part[8:]
            case "drop":
                part = b""
            case "repeat":
                part *= draw(st.sampled_from([2, 3, 50]))
            case "piece":
                part = draw(st.sampled_from(PIECES))
            case "bytes":
                part = draw(st.binary(max_size=12))
            case "splice":
                other = draw(st.sampled_from(seeds.seeds()[draw(st.sampled_from(SPLICED))]))
                place = draw(st.integers(0, len(other)))
                part = other[place : place + 200]
            case "truncate":
                stop = len(content)
                part = b""
        content = content[:start] + part + content[stop:]
    return content


@pytest.fixture(scope="module")
def parser_table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    return parsers(tmp_path_factory.mktemp("parsers"))


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Let this process have no more than so much beyond what it has now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (address_space + MEMORY_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_taken(parser_table: dict[str, Parser], name: str) -> None:
    assert [parser_table[name](content) for content in seeds.seeds()[name]] == [""] * len(seeds.seeds()[name])


@pytest.mark.parametrize("name", READERS)
@pytest.mark.usefixtures("bounded_memory")
def test_a_mutated_file_is_taken_or_refused_in_words(parser_table: dict[str, Parser], name: str) -> None:
    refused = []

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=60_000,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(mutated(name))
    def try_one(content: bytes) -> None:
        message = parser_table[name](content)
        assert "Traceback" not in message
        assert len(message) < LONGEST_MESSAGE
        refused.append(bool(message))

    try_one()
    assert any(refused)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of every hostile file, in a process of its own with bounded memory; none of them ran anything."""
    directory = tmp_path_factory.mktemp("hostile")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.hostile", directory / "canary"],
        cwd=directory,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr
    assert not (directory / "canary").exists()
    assert list(directory.iterdir()) == []
    found: dict[str, str] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize("name", READERS)
def test_a_hostile_file_is_refused_in_words_and_runs_nothing(hostile: dict[str, str], name: str) -> None:
    found = {what: message for what, message in hostile.items() if what.startswith(f"{name}: ")}
    assert {what: message for what, message in found.items() if "Traceback" in message} == {}
    assert [what for what, message in found.items() if len(message) > LONGEST_MESSAGE] == []


def test_the_hostile_files_are_many_and_the_worst_are_refused(hostile: dict[str, str]) -> None:
    assert len(hostile) > 400
    for what in (
        "fasta: zeros",
        "fasta: letters",
        "fasta: qualities",
        "fasta: a long id",
        "manifest: a million brackets",
        "settings: os.system",
        "settings: laughs in a value",
    ):
        assert hostile[what]
    for name in ("pth", "fair_esm", "pytorch_bin"):
        assert all(message for what, message in hostile.items() if what.startswith(f"{name}: "))
        for call in ("os.system, zip", "eval, zip", "a tensor of 4 TiB, zip", "8 GiB, zip"):
            assert "refused" in hostile[f"{name}: {call}"]
        assert "saved by torch before 1.6" in hostile[f"{name}: os.system, legacy"]
    embeddings = {what: message for what, message in hostile.items() if what.startswith("embeddings: ")}
    assert [what for what, message in embeddings.items() if not message] == []


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_finds_nothing_in_some_thousand_runs(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, REPOSITORY / "tests/fuzz/fuzz.py", "pth", "--runs", "5000", "--seed", "1"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "INFO: Instrumenting" in ended.stderr
    assert "Done " in ended.stderr
