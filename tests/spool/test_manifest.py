"""Manifests: what is written is read back, and nothing that others write does harm."""

import dataclasses
import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from holdfast.models.registry import KINDS, POLICIES, POOLINGS, Output
from holdfast.sequences import GENETIC_CODES
from holdfast.spool.job import (
    DIGEST_PATTERN,
    FORMAT_VERSION,
    MANIFEST_LIMIT_BYTES,
    MODEL_PATTERN,
    MODELS,
    PRECISIONS,
    PROVENANCE,
    RESERVED,
    SAMPLE_PATTERN,
    STORE_DTYPES,
    Manifest,
    ManifestError,
    Request,
    is_model_name,
    make_manifest,
    parse_manifest,
)
from hypothesis import example, given
from hypothesis import strategies as st

SCRIPTS = Path(__file__).parents[2] / "workflow/scripts"
PROTEIN = Request("a" * 64, [Output(20, "mean"), Output(33, "max"), Output(33, "residues")], "whole", 0)
DNA = Request("b" * 64, [Output(12, "mean")], "refuse", 100_000)
EXAMPLE = Manifest(
    sample="s1",
    kind="contigs",
    fasta="/data/s1.fna",
    input_sha256="c" * 64,
    size_bytes=100,
    chunk_length=500,
    genetic_code=1,
    models={"esm2": PROTEIN, "dnabert_s": DNA},
    precision="auto",
    store_dtype="float16",
)
OTHERS: dict[str, Any] = {
    "sample": "s2",
    "kind": "dna",
    "fasta": "/data/s2.fna",
    "input_sha256": "d" * 64,
    "size_bytes": 101,
    "chunk_length": 300,
    "genetic_code": 11,
    "models": {"esm2": PROTEIN, "dnabert_s": dataclasses.replace(DNA, max_length=99_999)},
    "precision": "fp32",
    "store_dtype": "float32",
    "run": "another",
    "part": 3,
    "computed_in": "fp16",
    "format_version": FORMAT_VERSION + 1,
}
SNIPPETS = [
    *(
        "[",
        "{",
        "]",
        "}",
        ",",
        ":",
        '"',
        "\\",
        "\\u0000",
        "\\ud800",
        "null",
        "true",
        "NaN",
        "-Infinity",
        "1e999",
        "1" * 5000,
    ),
    *("\n", "\t", "//", "'", "#", "\0", "\ufeff", "é"),
]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    outputs = st.builds(Output, st.integers(0, 2**16 - 1), st.sampled_from(POOLINGS))
    long = draw(st.sampled_from(POLICIES))
    return Request(
        draw(st.from_regex(DIGEST_PATTERN, fullmatch=True)),
        draw(st.lists(outputs, min_size=1, max_size=4, unique=True)),
        long,
        0 if long == "whole" else draw(st.integers(2, 2**31 - 1)),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    kind = draw(st.sampled_from(sorted(KINDS)))
    path = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.sampled_from("\udc80\udcff"))
    names = st.from_regex(MODEL_PATTERN, fullmatch=True).filter(is_model_name)
    return Manifest(
        sample=draw(st.from_regex(SAMPLE_PATTERN, fullmatch=True)),
        kind=kind,
        fasta="/" + draw(path),
        input_sha256=draw(st.just("") | st.from_regex(DIGEST_PATTERN, fullmatch=True)),
        size_bytes=draw(st.integers(-1, 2**62)),
        chunk_length=draw(st.integers(3, 100_000)) if kind == "contigs" else 0,
        genetic_code=draw(st.sampled_from(sorted(GENETIC_CODES))) if kind == "contigs" else 0,
        models=draw(st.dictionaries(names, requests(), min_size=1, max_size=3)),
        precision=draw(st.sampled_from(PRECISIONS)),
        store_dtype=draw(st.sampled_from(STORE_DTYPES)),
        run=draw(st.text(max_size=50)),
        part=draw(st.integers(-1, 999_999)),
        computed_in=draw(st.sampled_from(("", "fp32", "fp16", "bf16"))),
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
    assert parse_manifest(text.encode().decode(), "a.json") == written
    assert parse_manifest(text, "a.json").job == written.job
    assert SAMPLE_PATTERN.match(written.job)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Manifest)])
def test_the_digest_of_a_job_changes_with_all_but_name_and_place(name: str) -> None:
    changed = dataclasses.replace(EXAMPLE, **{name: OTHERS[name]})
    assert (changed.digest == EXAMPLE.digest) == (name in PROVENANCE)
    assert (changed.job == EXAMPLE.job) == (name in PROVENANCE and name not in ("sample", "part"))


def test_the_name_of_a_job_is_the_same_on_every_machine_and_day() -> None:
    assert EXAMPLE.job == "s1-" + _digest_by_hand()
    reordered = dataclasses.replace(EXAMPLE, models=dict(reversed(EXAMPLE.models.items())), run="another")
    assert reordered.job == EXAMPLE.job


def _digest_by_hand() -> str:
    text = (
        '{"chunk_length": 500, "format_version": 4, "genetic_code": 1, '
        f'"input_sha256": "{"c" * 64}", "kind": "contigs", '
        '"models": {"dnabert_s": {"long": "refuse", "max_length": 100000, '
        f'"outputs": [{{"layer": 12, "pooling": "mean"}}], "weights_sha256": "{"b" * 64}"}}, '
        '"esm2": {"long": "whole", "max_length": 0, "outputs": [{"layer": 20, "pooling": "mean"}, '
        '{"layer": 33, "pooling": "max"}, {"layer": 33, "pooling": "residues"}], '
        f'"weights_sha256": "{"a" * 64}"}}}}, "precision": "auto", "store_dtype": "float16"}}'
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def only_a_manifest_error(text: str) -> None:
    """Parse; a manifest that comes out is sound: its own text gives it again, and it has a name."""
    message = ""
    try:
        read = parse_manifest(text, "a.json")
    except ManifestError as error:
        message = str(error)
    if message:
        assert message.startswith("a.json: ")
        assert "\n" not in message
        assert len(message.encode()) < 2 * MANIFEST_LIMIT_BYTES
    else:
        assert parse_manifest(read.dump(), "b.json") == read
        assert read.job.startswith(read.sample)


@given(damaged())
@example(EXAMPLE.dump().replace("chunk_length", "chunk\\nlength"))
def test_damaged_text_gives_a_manifest_error_or_a_manifest(text: str) -> None:
    only_a_manifest_error(text)


@given(st.text() | st.lists(st.sampled_from(SNIPPETS), max_size=20).map("".join))
def test_foreign_text_gives_a_manifest_error(text: str) -> None:
    only_a_manifest_error(text)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sample", "../s1", "sample: not a value"),
        ("sample", ".s1", "sample: not a value"),
        ("sample", "s" * 129, "sample: not a value"),
        ("sample", ["s1"], "sample must be text"),
        ("extra", 1, "extra is unknown"),
        ("kind", "genes", "kind: not a value"),
        ("kind", "dna", "chunk_length: not a value"),
        ("fasta", "data/s1.fna", "fasta: not a value"),
        ("fasta", "/a\0b", "fasta: not a value"),
        ("input_sha256", "C" * 64, "input_sha256: not a value"),
        ("size_bytes", 1.5, "size_bytes must be a whole number"),
        ("size_bytes", True, "size_bytes must be a whole number"),
        ("size_bytes", 2**64, "size_bytes: a whole number of more than 64 bits"),
        ("chunk_length", 2, "chunk_length: not a value"),
        ("chunk_length", 100_001, "chunk_length: not a value"),
        ("precision", "bf32", "precision: not a value"),
        ("store_dtype", "float64", "store_dtype: not a value"),
        ("format_version", 2, "format_version: not a value"),
        ("models", [], "models must hold names and values"),
    ],
)
def test_a_wrong_value_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises(ManifestError, match=rf"^a\.json: {message}"):
        parse_manifest(json.dumps(dataclasses.asdict(EXAMPLE) | {key: value}), "a.json")


GOOD = dataclasses.asdict(PROTEIN)


def asked(**changed: object) -> dict[str, object]:
    """What a manifest asks of a model, but for what was changed."""
    return {"m": GOOD | changed}


@pytest.mark.parametrize(
    "models",
    [
        {},
        {f"m{number}": GOOD for number in range(MODELS + 1)},
        *({name: GOOD} for name in ("", "a/b", "..", ".m", "-m", "_m", "m\n", "m\0", "m n", "é", "m" * 65)),
        *({name: GOOD} for name in RESERVED),
        *(asked(weights_sha256=digest) for digest in ("", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n")),
        asked(outputs=[]),
        asked(outputs=[{"layer": 3, "pooling": "mean"}] * 2),
        *(asked(outputs=[{"layer": layer, "pooling": "mean"}]) for layer in (-1, 2**16, 2**62)),
        *(asked(outputs=[{"layer": 3, "pooling": pooling}]) for pooling in ("", "std", "Mean", "../mean", "offsets")),
        *(asked(long=long, max_length=10) for long in ("", "cut", "Window")),
        *(asked(long="whole", max_length=length) for length in (-1, 1, 1022)),
        *(
            asked(long=long, max_length=length)
            for long in ("window", "truncate", "refuse")
            for length in (-5, 0, 1, 2**31, 2**62)
        ),
    ],
)
def test_models_that_no_client_asks_for_so_are_refused(models: dict[str, object]) -> None:
    with pytest.raises(ManifestError, match=r"^a\.json: models: not a value this version writes: ") as caught:
        parse_manifest(json.dumps(dataclasses.asdict(EXAMPLE) | {"models": models}), "a.json")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "models must hold names and values"),
        ({"m": "a" * 64}, "models.m must hold names and values"),
        ({"m": [GOOD]}, "models.m must hold names and values"),
        (asked(weights_sha256=None), "models.m.weights_sha256 must be text"),
        (asked(extra=1), "models.m.extra is unknown"),
        ({"m": {key: value for key, value in GOOD.items() if key != "long"}}, "models.m.long is missing"),
        (asked(outputs={"33": "mean"}), "models.m.outputs must be a list"),
        (asked(outputs=["33/mean"]), "models.m.outputs must hold names and values"),
        (asked(outputs=[{"layer": 33}]), "models.m.outputs.pooling is missing"),
        (asked(outputs=[{"layer": "33", "pooling": "mean"}]), "models.m.outputs.layer must be a whole number"),
        (asked(outputs=[{"layer": True, "pooling": "mean"}]), "models.m.outputs.layer must be a whole number"),
        (asked(outputs=[{"layer": 3.0, "pooling": "mean"}]), "models.m.outputs.layer must be a whole number"),
        (asked(outputs=[{"layer": 3, "pooling": ["mean"]}]), "models.m.outputs.pooling must be text"),
        (asked(max_length=None), "models.m.max_length must be a whole number"),
        (asked(max_length=10.5), "models.m.max_length must be a whole number"),
        (asked(long=None), "models.m.long must be text"),
    ],
)
def test_what_is_wrong_inside_a_model_is_named(models: object, message: str) -> None:
    with pytest.raises(ManifestError, match=rf"^a\.json: {message}$"):
        parse_manifest(json.dumps(dataclasses.asdict(EXAMPLE) | {"models": models}), "a.json")


def test_as_many_models_as_a_job_may_have_fit_into_a_manifest() -> None:
    outputs = [Output(layer, pooling) for layer in (20, 33) for pooling in POOLINGS]
    request = Request("a" * 64, outputs, "window", 2**31 - 1)
    job = dataclasses.replace(EXAMPLE, models={f"model-{number:058d}": request for number in range(MODELS)})
    assert parse_manifest(job.dump(), "a.json") == job
    assert job.weights == {"a" * 64}


def test_a_missing_key_is_named() -> None:
    content = dataclasses.asdict(EXAMPLE)
    del content["kind"]
    with pytest.raises(ManifestError, match=r"^a\.json: kind is missing"):
        parse_manifest(json.dumps(content), "a.json")


BOMBS = {
    "brackets": "[" * 60_000,
    "braces": '{"a":' * 12_000,
    "many keys": "{" + ",".join(f'"k{i}":1' for i in range(6000)) + "}",
    "a long number": EXAMPLE.dump().replace('"size_bytes": 1', f'"size_bytes": {"1" * 50_000}'),
    "too large": "#" * 10_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_bounded_time_and_memory(name: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.json").write_text(BOMBS[name])
    code = (
        "import sys; from holdfast.spool.job import ManifestError, parse_manifest\n"
        "try: parse_manifest(open(sys.argv[1]).read(), 'bomb.json')\n"
        "except ManifestError as error: print('refused', len(str(error)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "bomb.json"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    word, characters = ended.stdout.split()
    assert word == "refused"
    assert int(characters) < 2 * MANIFEST_LIMIT_BYTES


def test_a_job_is_made_from_the_content_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.fna").write_text(">a\nACGT\n")
    models = {"esm2": PROTEIN, "dnabert_s": DNA}
    job = make_manifest("s", "contigs", "a.fna", 300, 1, models, "fp32", "float32")
    digest = hashlib.sha256(b">a\nACGT\n").hexdigest()
    assert job == Manifest("s", "contigs", f"{tmp_path}/a.fna", digest, 8, 300, 1, models, "fp32", "float32")
    (tmp_path / "elsewhere.fna").write_text(">a\nACGT\n")
    other = make_manifest("t", "contigs", "elsewhere.fna", 300, 1, models, "fp32", "float32")
    assert (other.digest, other.job) == (job.digest, f"t-{job.digest}")
    assert job.weights == {"a" * 64, "b" * 64}
    (tmp_path / "a.fna").write_text(">a\nACGTA\n")
    assert make_manifest("s", "contigs", "a.fna", 300, 1, models, "fp32", "float32").job != job.job


@pytest.mark.parametrize(("kind", "models"), [("proteins", {"esm2": PROTEIN}), ("dna", {"dnabert_s": DNA})])
def test_only_contigs_have_a_chunk_length_and_a_genetic_code(kind: str, models: dict[str, Request]) -> None:
    job = make_manifest("s", kind, "/none", 500, 1, models, "auto", "float16")
    assert (job.models, job.chunk_length, job.genetic_code) == (models, 0, 0)
    assert (job.size_bytes, job.input_sha256) == (-1, "")
    assert make_manifest("s", kind, "/none", 300, 1, models, "auto", "float16").job == job.job


@pytest.mark.parametrize(
    "changed",
    [
        {"weights_sha256": "c" * 64},
        {"outputs": PROTEIN.outputs[:2]},
        {"outputs": [*PROTEIN.outputs[:2], Output(32, "residues")]},
        {"outputs": [*PROTEIN.outputs[:2], Output(33, "cls")]},
        {"long": "window", "max_length": 1022},
        {"long": "truncate", "max_length": 1022},
        {"long": "truncate", "max_length": 1023},
    ],
)
def test_the_name_of_a_job_changes_with_all_that_is_asked_of_a_model(changed: dict[str, Any]) -> None:
    other = dataclasses.replace(EXAMPLE, models={**EXAMPLE.models, "esm2": dataclasses.replace(PROTEIN, **changed)})
    renamed = dataclasses.replace(EXAMPLE, models={"mine": PROTEIN, "dnabert_s": DNA})
    assert len({EXAMPLE.job, other.job, renamed.job}) == 3
