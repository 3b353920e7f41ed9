"""Manifests: what is written is read back, and nothing that others write does harm."""

import dataclasses
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from holdfast import manifest
from holdfast.manifest import FORMAT_VERSION, PRECISIONS, STORE_DTYPES, Manifest, ManifestError
from holdfast.models import KINDS
from hypothesis import given
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
EXAMPLE = Manifest(
    sample="s1",
    kind="contigs",
    fasta="/data/s1.fna",
    size_bytes=100,
    mtime_ns=1_700_000_000_123_456_789,
    chunk_length=500,
    models={"esm2": "a" * 64, "dnabert_s": "b" * 64},
    precision="auto",
    store_dtype="float16",
)
OTHERS = {
    "sample": "s2",
    "kind": "dna",
    "fasta": "/data/s2.fna",
    "size_bytes": 101,
    "mtime_ns": 1_700_000_000_123_456_790,
    "chunk_length": 300,
    "models": {"esm2": "a" * 64, "dnabert_s": "c" * 64},
    "precision": "fp32",
    "store_dtype": "float32",
    "format_version": FORMAT_VERSION + 1,
}
SNIPPETS = [
    *("&a ", "*a", "<<: *a", "[", "{", "]", "}", "- ", "? ", ": ", "\n", "\t", "|\n", ">\n", "'", '"', "#", "%", "!"),
    *(
        "!!bool x",
        "!!timestamp x",
        "!!int ''",
        "!!float ''",
        "!!binary x",
        "!!set {a}",
        "!!omap [a: b]",
        "!!python/x",
    ),
    *("2001-13-45", "1e999", ".nan", "0x" + "f" * 5000, "1:60", "0o7", "~", "true", "--- ", "...", "\0", "\ufeff", "é"),
    '"\\ud800"',
]


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    kind = draw(st.sampled_from(sorted(KINDS)))
    path = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff"))
    return Manifest(
        sample=draw(st.from_regex(manifest.SAMPLE_PATTERN, fullmatch=True)),
        kind=kind,
        fasta="/" + draw(path),
        size_bytes=draw(st.integers(-1, 2**62)),
        mtime_ns=draw(st.integers(-(2**62), 2**63 - 1)),
        chunk_length=draw(st.integers(3, 100_000)) if kind == "contigs" else 0,
        models={model: draw(st.from_regex(manifest.DIGEST_PATTERN, fullmatch=True)) for model in KINDS[kind].models},
        precision=draw(st.sampled_from(PRECISIONS)),
        store_dtype=draw(st.sampled_from(STORE_DTYPES)),
    )


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A manifest's text with pieces taken out, put in or replaced."""
    text = draw(manifests()).dump()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = start + draw(st.integers(0, 20))
        text = text[:start] + draw(st.sampled_from(["", *SNIPPETS]) | st.text(max_size=5)) + text[stop:]
    return text


@given(manifests())
def test_a_manifest_is_read_back_as_it_was_written(written: Manifest) -> None:
    text = written.dump()
    assert manifest.parse(text.encode().decode(), "a.yaml") == written
    assert manifest.parse(text, "a.yaml").job == written.job
    assert manifest.SAMPLE_PATTERN.match(written.job)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Manifest)])
def test_the_name_of_a_job_changes_with_every_field(name: str) -> None:
    changed = dataclasses.replace(EXAMPLE, **{name: OTHERS[name]})
    assert changed.job.rpartition("-")[2] != EXAMPLE.job.rpartition("-")[2]


def test_the_name_of_a_job_is_the_same_on_every_machine_and_day() -> None:
    assert EXAMPLE.job == "s1-" + _digest_by_hand()
    reordered = dataclasses.replace(EXAMPLE, models=dict(reversed(EXAMPLE.models.items())))
    assert reordered.job == EXAMPLE.job


def _digest_by_hand() -> str:
    text = (
        '{"chunk_length": 500, "fasta": "/data/s1.fna", "format_version": 1, "kind": "contigs", '
        f'"models": {{"dnabert_s": "{"b" * 64}", "esm2": "{"a" * 64}"}}, "mtime_ns": 1700000000123456789, '
        '"precision": "auto", "sample": "s1", "size_bytes": 100, "store_dtype": "float16"}'
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def only_a_manifest_error(text: str) -> None:
    """Parse; a manifest that comes out is sound: its own text gives it again, and it has a name."""
    message = ""
    try:
        read = manifest.parse(text, "a.yaml")
    except ManifestError as error:
        message = str(error)
    if message:
        assert message.startswith("a.yaml: ")
        assert "\n" not in message
        assert len(message.encode()) < 2 * manifest.MAX_BYTES
    else:
        assert manifest.parse(read.dump(), "b.yaml") == read
        assert read.job.startswith(read.sample)


@given(damaged())
def test_damaged_text_gives_a_manifest_error_or_a_manifest(text: str) -> None:
    only_a_manifest_error(text)


@given(st.text() | st.lists(st.sampled_from(SNIPPETS), max_size=20).map("".join))
def test_foreign_text_gives_a_manifest_error(text: str) -> None:
    only_a_manifest_error(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sample: s1", "sample: ../s1", "sample: "),
        ("sample: s1", "sample: .s1", "sample: "),
        ("sample: s1", "sample: " + "s" * 129, "sample: "),
        ("sample: s1", "sample: [s1]", "sample: "),
        ("sample: s1", "sampel: s1", "needs exactly the keys"),
        ("sample: s1", "sample: s1\nextra: 1", "needs exactly the keys"),
        ("kind: contigs", "kind: genes", "kind: "),
        ("kind: contigs", "kind: [contigs]", "kind: "),
        ("kind: contigs", "kind: dna", "models: "),
        ("fasta: /data", "fasta: data", "fasta: "),
        ("fasta: /data/s1.fna", 'fasta: "/a\\0b"', "fasta: "),
        ("size_bytes: 100", "size_bytes: 1.5", "size_bytes: "),
        ("size_bytes: 100", "size_bytes: true", "size_bytes: "),
        ("size_bytes: 100", f"size_bytes: 0x{'f' * 5000}", "size_bytes: "),
        ("chunk_length: 500", "chunk_length: 2", "chunk_length: "),
        ("chunk_length: 500", "chunk_length: 100001", "chunk_length: "),
        ("chunk_length: 500", f"chunk_length: 0x{'f' * 5000}", "chunk_length: "),
        ("precision: auto", "precision: bf16", "precision: "),
        ("store_dtype: float16", "store_dtype: float64", "store_dtype: "),
        ("format_version: 1", "format_version: 2", "format_version: "),
        ("format_version: 1", "format_version: true", "format_version: "),
        ("a" * 64, "A" * 64, "models: "),
        ("a" * 64, "a" * 63, "models: "),
        ("  esm2: ", "  esm3: ", "models: "),
        ("kind: contigs", "kind: !!bool x", "not YAML: tags"),
        ("kind: contigs", "kind: !!timestamp x", "not YAML: tags"),
        ("kind: contigs", "kind: !!int ''", "not YAML: tags"),
        ("kind: contigs", "kind: 2001-13-45", "kind|not YAML"),
        ("kind: contigs", "kind: !!python/object/apply:os.getpid []", "not YAML: tags"),
    ],
)
def test_a_wrong_value_is_named(old: str, new: str, message: str) -> None:
    text = EXAMPLE.dump()
    assert old in text
    with pytest.raises(ManifestError, match=rf"^a\.yaml: ({message})"):
        manifest.parse(text.replace(old, new), "a.yaml")


BOMBS = {
    "aliases in a value": EXAMPLE.dump().replace(
        "sample: s1",
        "sample: [&a [x, x, x, x, x, x, x, x, x], "
        + ", ".join(f"&{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]" for c in "bcdefghij")
        + "]",
    ),
    "aliases in a key": "? &a [x, x]\n: 1\n"
    + "\n".join(f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]" for c in "bcdefghij"),
    "merges": "a: &a {x: 1, y: 2}\n"
    + "\n".join(f"{c}: &{c} {{<<: [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]}}" for c in "bcdefghij"),
    "an alias to itself": EXAMPLE.dump().replace("sample: s1", "sample: &a [*a, *a]"),
    "brackets": "[" * 60_000,
    "braces": "{a: " * 15_000,
    "dashes": "- " * 30_000,
    "many keys": "".join(f"k{i}: 1\n" for i in range(6000)),
    "many anchors": "".join(f"- &a{i}\n" for i in range(7000)),
    "a long number": EXAMPLE.dump().replace("mtime_ns: 17", f"mtime_ns: {'1' * 50_000}"),
    "a long base 60 number": EXAMPLE.dump().replace("mtime_ns: 17", f"mtime_ns: 1{':1' * 25_000}"),
    "too large": "#" * 10_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.yaml").write_text(BOMBS[name])
    code = (
        "import sys; from holdfast import manifest\n"
        "try: manifest.parse(open(sys.argv[1]).read(), 'bomb.yaml')\n"
        "except manifest.ManifestError as error: print('refused', len(str(error)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "bomb.yaml"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
        capture_output=True,
        text=True,
        timeout=10,
    )
    word, characters = ended.stdout.split()
    assert word == "refused"
    assert int(characters) < 2 * manifest.MAX_BYTES


def test_a_job_is_made_from_size_and_time_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.fna").write_text(">a\nACGT\n")
    os.utime("a.fna", ns=(5, 1_234_567_890_123_456_789))
    digests = {"esm2": "a" * 64, "dnabert_s": "b" * 64}
    job = manifest.make("s", "contigs", "a.fna", 300, digests, "fp32", "float32")
    assert job == Manifest(
        "s", "contigs", f"{tmp_path}/a.fna", 8, 1_234_567_890_123_456_789, 300, digests, "fp32", "float32"
    )
    (tmp_path / "a.fna").write_text(">a\nACGTA\n")
    assert manifest.make("s", "contigs", "a.fna", 300, digests, "fp32", "float32").job != job.job


@pytest.mark.parametrize(("kind", "model"), [("proteins", "esm2"), ("dna", "dnabert_s")])
def test_a_job_names_only_what_its_result_depends_on(kind: str, model: str) -> None:
    digests = {"esm2": "a" * 64, "dnabert_s": "b" * 64}
    job = manifest.make("s", kind, "/none", 500, digests, "auto", "float16")
    assert (job.models, job.chunk_length) == ({model: digests[model]}, 0)
    assert (job.size_bytes, job.mtime_ns) == (-1, -1)
    assert manifest.make("s", kind, "/none", 300, digests, "auto", "float16").job == job.job
