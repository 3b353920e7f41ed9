"""Config and sample sheet: what is filled in, and messages that a biologist understands."""

import os
from pathlib import Path
from typing import Any

import numpy
import pandas  # type: ignore[import-untyped]
import pytest
from holdfast.errors import ConfigError
from holdfast.results.presets import CallRules
from holdfast.run.config import (
    Sample,
    check_config,
    check_files,
    check_fit,
    labelled_files,
    read_samples,
    write_samples,
)
from holdfast.spool.job import RESERVED

GOOD: dict[str, Any] = {"samples": "samples.tsv", "models": {"esm2": {"weights": "a"}, "dnabert_s": {"weights": "b"}}}
UTF_16 = "it is UTF-16 text; save it as UTF-8: iconv -f utf-16 -t utf-8"
LATIN_1 = "line 2 is not UTF-8 text; perhaps it is Latin-1: iconv -f latin1 -t utf-8, or save it as UTF-8"
LABELLED = (("c", "virus"), ("a", "non-viral"), ("d", "non-viral"))
ASKED = {"sha256": None, "layers": ["last"], "pooling": ["mean"], "long": None, "max_length": None}


def with_defaults(**changed: Any) -> dict[str, Any]:
    return check_config({**GOOD, **changed})


def problems(config: dict[str, Any]) -> list[str]:
    """The lines of the message that say what is wrong."""
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    first, *lines = str(caught.value).splitlines()
    assert first == "the config (config/config.yaml, --config) is not valid:"
    return [line.removeprefix("  ") for line in lines]


def sheet(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "samples.tsv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(path: Path) -> dict[str, Sample]:
    return read_samples(path)


def sheet_problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path} is not valid:"
    return [line.removeprefix("  ") for line in lines]


def test_every_key_but_samples_and_models_has_a_default() -> None:
    filled = with_defaults()
    assert {key: value for key, value in filled.items() if key != "pool"} == {
        "samples": "samples.tsv",
        "models": {"esm2": {"weights": "a", **ASKED}, "dnabert_s": {"weights": "b", **ASKED}},
        "method": {"protein": None, "dna": None},
        "chunk_length": 500,
        "genetic_code": 1,
        "classifier": None,
        "container": None,
        "calls": {"preset": "relaxed", **dict.fromkeys(CallRules.__dataclass_fields__)},
        "output_virnucpro": False,
        "output_bgzip": False,
        "seed": 1,
        "projection": "pca",
        "cache": None,
        "precision": "auto",
        "store_dtype": "float16",
        "export": None,
    }
    assert filled["pool"]["tokens_per_batch"] is None
    assert filled["pool"]["max_tasks_per_worker"] is None


def test_what_is_given_is_kept_and_the_given_mapping_is_left_alone() -> None:
    models = {"a-Model_1": {"weights": "a", "layers": [0, "last"], "long": "window", "max_length": 2}}
    given = {**GOOD, "models": models, "chunk_length": 300, "pool": {"device": "cpu"}, "method": {"dna": "x"}}
    before = repr(given)
    filled = check_config(given)
    assert (filled["chunk_length"], filled["pool"]["device"], filled["pool"]["threads"]) == (300, "cpu", 8)
    assert filled["models"] == {"a-Model_1": {"sha256": None, "pooling": ["mean"], **models["a-Model_1"]}}
    assert filled["method"] == {"protein": None, "dna": "x"}
    assert repr(given) == before
    assert with_defaults()["pool"]["device"] == "auto"


@pytest.mark.parametrize(
    ("layers", "wanted"), [("last", ["last"]), (3, [3]), (0, [0]), ([0, 3], [0, 3]), (["last", 0], ["last", 0])]
)
def test_one_layer_or_pooling_is_a_list_of_one(layers: Any, wanted: list[Any]) -> None:
    entry = {"weights": "a", "layers": layers, "pooling": "cls"}
    (filled,) = with_defaults(models={"my": entry})["models"].values()
    assert (filled["layers"], filled["pooling"]) == (wanted, ["cls"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"chunk_lenght": 500}, "unknown key 'chunk_lenght'; did you mean 'chunk_length'?"),
        ({"pool": {"token_per_batch": 1}}, "unknown key 'pool.token_per_batch'; did you mean 'tokens_per_batch'?"),
        ({"models": {"esm2": {"weights": "a", "sha": "b"}}}, "unknown key 'models.esm2.sha'; did you mean 'sha256'?"),
        ({"models": {"my": {"weights": "a", "layer": [1]}}}, "unknown key 'models.my.layer'; did you mean 'layers'?"),
        (
            {"models": {"my": {"weights": "a", "gpu": 1}}},
            "unknown key 'models.my.gpu'; known are weights, sha256, layers, pooling, long, max_length",
        ),
        ({"models": {"my": {"weights": "a", "layers": [-1]}}}, "'models.my.layers.0' must be at least 0, is -1"),
        (
            {"models": {"my": {"weights": "a", "layers": ["first"]}}},
            "'models.my.layers.0' must be a number from 0 (the",
        ),
        ({"models": {"my": {"weights": "a", "layers": [1.5]}}}, "'models.my.layers.0' must be of type integer or str"),
        (
            {"models": {"my": {"weights": "a", "pooling": ["std"]}}},
            "'models.my.pooling.0' must be one of mean, cls, max",
        ),
        ({"models": {"my": {"weights": "a", "layers": -1}}}, "'models.my.layers' must be at least 0, is -1"),
        ({"models": {"my": {"weights": "a", "layers": "first"}}}, "'models.my.layers' must be numbers from 0 (the"),
        ({"models": {"my": {"weights": "a", "layers": []}}}, "'models.my.layers' must be numbers from 0 (the"),
        ({"models": {"my": {"weights": "a", "layers": [1, 1]}}}, "'models.my.layers' must be numbers from 0 (the"),
        ({"models": {"my": {"weights": "a", "pooling": "std"}}}, "'models.my.pooling' must be of mean, cls, max and r"),
        (
            {"models": {"my": {"weights": "a", "long": "cut"}}},
            "'models.my.long' must be one of whole, window, truncate",
        ),
        ({"models": {"my": {"weights": "a", "max_length": 1}}}, "'models.my.max_length' must be at least 2, is 1"),
        ({"method": {"codon": "esm2"}}, "unknown key 'method.codon'; known are protein, dna"),
        (
            {"pool": {"zzz": 1}},
            "unknown key 'pool.zzz'; known are lifecycle, spool, replicas, device, share_gpu, gpu_wait_s",
        ),
        ({"chunk_length": "five"}, "'chunk_length' must be of type integer, is 'five'"),
        ({"chunk_length": 500.5}, "'chunk_length' must be of type integer, is 500.5"),
        ({"pool": {"lease_s": "inf"}}, "'pool.lease_s' must be of type number, is 'inf'"),
        ({"chunk_length": 2}, "'chunk_length' must be at least 3, is 2"),
        ({"chunk_length": 100_001}, "'chunk_length' must be at most 100000, is 100001"),
        ({"genetic_code": 2}, "'genetic_code' must be one of 1, 4, 11, 15, 25, is 2"),
        ({"output_virnucpro": "maybe"}, "'output_virnucpro' must be of type boolean, is 'maybe'"),
        ({"calls": {"virus_score": 1.5}}, "'calls.virus_score' must be at most 1, is 1.5"),
        ({"calls": {"preset": "strict"}}, "'calls.preset' must be one of relaxed, conservative, is 'strict'"),
        ({"calls": {"margin": 0}}, "'calls.margin' must be above 0, is 0"),
        ({"threshold": 0.5}, "unknown key 'threshold'"),
        ({"classifier": 3}, "'classifier' must be of type string or null (write it in quotes), is 3"),
        ({"precision": "tf32"}, "'precision' must be one of auto, fp32, fp16, bf16, is 'tf32'"),
        ({"store_dtype": "double"}, "'store_dtype' must be one of float16, float32, is 'double'"),
        ({"models": {}}, "'models' needs keys, at least 1, is {}"),
        ({"models": {"esm2": {}}}, "'models.esm2.weights' is missing: the published checkpoint"),
        ({"models": {"esm2": {"weights": ""}}}, "'models.esm2.weights' must be a path, a hub id or synthetic:"),
        (
            {"models": {"esm2": {"weights": "synthetic:esm2_t6"}}},
            "'models.esm2.weights': synthetic:esm2_t6: no such architecture; did you mean synthetic:esm2_t6_8M_UR50D",
        ),
        (
            {"models": {"esm2": {"weights": "synthetic:"}}},
            "'models.esm2.weights': synthetic:: no such architecture; known are esm2_t6_8M_UR50D, ",
        ),
        ({"models": {"esm2": {"weights": None}}}, "'models.esm2.weights' must be of type string, is None"),
        ({"models": {"esm2": {"weights": "a", "sha256": "AB"}}}, "'models.esm2.sha256' must be a SHA-256 digest"),
        ({"models": {"esm2": "a"}}, "'models.esm2' must hold keys, such as {weights: facebook/esm2_t33_650M_UR50D}, i"),
        (
            {"models": {"esm2": None}},
            "'models.esm2' must hold keys, such as {weights: facebook/esm2_t33_650M_UR50D}, is N",
        ),
        (
            {"models": {"a": {"weights": "a{b}"}}},
            "'models.a.weights': a{b} holds braces, which Snakemake takes for a pat",
        ),
        (
            {"classifier": "{a}.pth"},
            "'classifier': {a}.pth holds braces, which Snakemake takes for a pattern; name a lin",
        ),
        (
            {"samples": "~nobody_is_called_so/a"},
            "'samples': ~nobody_is_called_so/a: names a user or a variable that is",
        ),
        ({"pool": {"memory_fraction": 0}}, "'pool.memory_fraction' must be above 0, is 0"),
        ({"pool": {"device": "gpu"}}, "'pool.device' must be one of auto, cuda, cpu, is 'gpu'"),
        ({"pool": {"gpu": 1}}, "unknown key 'pool.gpu'"),
        ({"pool": []}, "'pool' must be of type object, is []"),
        ({"samples": None}, "'samples' must be the path of a sample sheet, or a list of entries such as {sample: a"),
        (
            {"samples": {"a": "a.fna"}},
            "'samples' must be the path of a sample sheet, or a list of entries such as {sam",
        ),
    ],
)
def test_a_mistake_in_the_config_is_one_line_that_names_the_key(changed: dict[str, Any], message: str) -> None:
    (line,) = problems({**GOOD, **changed})
    assert line.startswith(message)


def test_all_mistakes_are_told_at_once_and_each_once() -> None:
    lines = problems({"chunk_length": "x", "colour": 1, "pool": {"threads": 0}})
    assert sorted(line.split("'")[1] for line in lines) == [
        "chunk_length",
        "colour",
        "models",
        "pool.threads",
        "samples",
    ]
    assert sorted(problems({})) == sorted(
        [
            "'samples' is missing: path of the sample sheet, a TSV or CSV file, relative to the working directory; "
            "or a list of its lines",
            "'models' is missing: the language models, by names of your choice, which are those of the results",
        ]
    )


def test_the_sheet_is_read_with_defaults_in_its_order(tmp_path: Path) -> None:
    lines = "b\tb.fna\t\tvirus\na.1-x_2\t/d/a b.fna\tproteins\t\tlarge, small\n"
    path = sheet(tmp_path, f"sample\tfasta\tkind\tlabel\tmodels\n{lines}")
    assert read(path) == {
        "b": Sample("b", "b.fna", "contigs", "virus", ""),
        "a.1-x_2": Sample("a.1-x_2", "/d/a b.fna", "proteins", "", "large, small"),
    }
    assert list(read(path)) == ["b", "a.1-x_2"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffsample\tfasta\r\na\ta.fna\r\nb\tb.fna\r\n",
        "sample\tfasta\n\n# a comment\na\ta.fna\n\t\n#c\tc.fna\nb\tb.fna",
        "fasta\tsample\na.fna\ta\nb.fna\tb\n",
        "sample\tfasta\tlabel\tkind\na\ta.fna\nb\tb.fna\t\t\n",
        "sample\tfasta\n a \t a.fna \nb\tb.fna\n",
        "sample\tfasta\ra\ta.fna\rb\tb.fna\r",
        "sample,fasta,kind\na,a.fna,\nb,b.fna,contigs\n",
        "sample;fasta;kind\na;a.fna\n#c;c.fna\nb;b.fna\n;;\n",
        '"sample"\t"fasta"\t"models"\n"a"\t"a.fna"\t""\nb\tb.fna\n',
        "sample\tfasta\t\t\na\ta.fna\t\t\nb\tb.fna\n",
        "sample\tfasta\na\ta.fna\t\t\nb\tb.fna\t\n",
        " Sample\tFASTA\u00a0\tKind\na\ta.fna\tContigs\nb\u00a0\tb.fna\n",
        "# mine\n\n\t\nsample\tfasta\na\ta.fna\nb\tb.fna\n",
        "# mine\n#sample\tfasta\n\na\ta.fna\nb\tb.fna\n",
        '"# mine, and only mine",\n#sample,kind\nsample,fasta\na,a.fna\nb,"b.fna"\n',
    ],
    ids=[
        *("byte order mark and CRLF", "comments and blank lines", "other order", "short lines", "spaces", "CR"),
        *("commas", "semicolons", "quotes", "empty columns", "empty cells", "case and spaces", "comments above"),
        *("a header that is a comment", "a comment that is no header"),
    ],
)
def test_the_same_samples_in_other_clothes(tmp_path: Path, text: str) -> None:
    wanted = {name: Sample(name, f"{name}.fna", "contigs", "", "") for name in "ab"}
    assert read(sheet(tmp_path, text)) == wanted


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "-a", "_a", "a b", "ä", "a" * 129, "a\\b", "a'b", "*"])
def test_a_bad_name_is_refused_with_the_rule(tmp_path: Path, name: str) -> None:
    (line,) = sheet_problems(sheet(tmp_path, f"sample\tfasta\nok\ta.fna\n{name}\tb.fna\n"))
    assert line == (
        "line 3: 'sample' must start with a letter or digit and hold only letters, digits and _ . - "
        f"(at most 128), is {name!r}"
    )


def test_every_wrong_line_is_named(tmp_path: Path) -> None:
    text = "sample\tfasta\tkind\n\n# comment\na\ta.fna\nb\tb.fna\tgenes\na\tc.fna\nd\n\te.fna\nf\tf.fna\tdna\tx\n"
    lines = sheet_problems(sheet(tmp_path, text))
    assert lines == [
        "line 5: 'kind' must be one of contigs, proteins, dna, is 'genes'",
        "line 6: sample 'a' stands already in line 4",
        "line 7: 'fasta' is missing: path of its FASTA or FASTQ file, plain or compressed (gzip, bzip2, xz, zstd), "
        "relative to the working directory; or its URL",
        "line 8: 'sample' is missing: name of the sample and of its directory below results/",
        "line 9: 4 cells, but the header has 3 columns",
    ]


def test_labels_are_those_of_the_classes(tmp_path: Path) -> None:
    text = "sample\tfasta\tkind\tlabel\na\ta.fna\tcontigs\tvirus\nb\tb.fna\tcontigs\tnon-viral\nc\tc.fna\t\tphage\n"
    lines = sheet_problems(sheet(tmp_path, text))
    (line,) = lines
    assert line.startswith(
        "line 4: 'label' must be virus, non-viral (any known source that is no virus, such as bacteria"
    )
    assert line.endswith(") or empty (not known), is 'phage'")


def test_a_line_that_lacks_two_cells_names_each_once(tmp_path: Path) -> None:
    lines = sheet_problems(sheet(tmp_path, "kind\tsample\tfasta\ndna\n"))
    assert sorted(line.split("'")[1] for line in lines) == ["fasta", "sample"]


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("sample\tfasta\tgroup", "sample, fasta, group"),
        ("sample\tkind", "sample, kind"),
        ("sample fasta", "sample fasta"),
        ("sample,fasta,group", "sample, fasta, group"),
        ("sample\tfasta\tfasta", "sample, fasta, fasta"),
        ("", "nothing"),
    ],
)
def test_other_columns_are_refused(tmp_path: Path, header: str, found: str) -> None:
    path = sheet(tmp_path, f"{header}\na\ta.fna\n" if header else "")
    with pytest.raises(ConfigError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 1: the columns must be sample, fasta, kind, label, models (with")
    assert message.endswith(f"found {found}")


def test_a_sheet_without_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"samples\.tsv: holds no sample"):
        read(sheet(tmp_path, "sample\tfasta\n# a\ta.fna\n"))


def test_a_sheet_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.tsv", "No such file or directory; set 'samples' in the config"),
        (tmp_path, "Is a directory; set 'samples' in the config"),
        (written(tmp_path / "utf16", "sample\tfasta\n".encode("utf-16")), UTF_16),
        (written(tmp_path / "latin1", "sample\tfasta\na\té\n".encode("latin-1")), LATIN_1),
        (
            written(tmp_path / "a.xlsx", b"PK\3\4" + bytes(300)),
            "it is a zip archive or an Excel workbook; unpack it, or sa",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: the sample sheet cannot be read: {reason}")


def test_a_list_in_the_config_is_read_and_written_like_a_sheet(tmp_path: Path) -> None:
    last = {"sample": "a", "fasta": "a", "kind": "dna", "models": "small"}
    entries = [{"sample": "b", "fasta": "#b c.fna", "label": "virus"}, last]
    before = repr(entries)
    found = read_samples(entries)
    assert found == {"b": Sample("b", "#b c.fna", "contigs", "virus", ""), "a": Sample("a", "a", "dna", "", "small")}
    assert repr(entries) == before
    path = tmp_path / "made" / "samples.tsv"
    write_samples(found.values(), path)
    assert read(path) == found
    written = path.stat().st_ino
    write_samples(found.values(), path)
    assert path.stat().st_ino == written
    write_samples([found["a"]], path)
    assert list(read(path)) == ["a"]


def test_every_wrong_entry_of_a_list_is_named() -> None:
    entries: list[object] = [
        {"sample": "a", "fasta": "a.fna"},
        "b.fna",
        {"sample": "a", "fasta": "b.fna"},
        {"sample": "c\n", "fasta": "c.fna"},
        {"sample": "d", "fasta": "d\t.fna"},
        {"sample": 5.5, "fasta": "e.fna", "group": "x"},
        {"fasta": Path("f.fna"), "sample": True},
        {"fasta": "$NOT_SET_ANYWHERE/g.fna", "sample": "g"},
        {"fasta": float("nan"), "sample": "h"},
    ]
    with pytest.raises(ConfigError) as caught:
        read_samples(entries)
    first, *lines = str(caught.value).splitlines()
    assert first == "the list 'samples' of the config is not valid:"
    assert [line[2:] for line in lines] == [
        "entry 2: must hold keys and values, is 'b.fna'",
        "entry 3: sample 'a' stands already in entry 1",
        "entry 4: 'sample' must start with a letter or digit and hold only letters, digits and _ . - (at most 128), "
        "is 'c\\n'",
        "entry 5: 'fasta' must be a path without tabs and line ends, is 'd\\t.fna'",
        "entry 6: unknown key 'group'; known are sample, fasta, kind, label, models",
        "entry 6: 'sample' must be of type string (write it in quotes), is 5.5",
        "entry 7: 'sample' must be of type string (write it in quotes), is True",
        "entry 8: 'fasta': $NOT_SET_ANYWHERE/g.fna: names a user or a variable that is not known here; write the path "
        "out",
        "entry 9: 'fasta' is missing: path of its FASTA or FASTQ file, plain or compressed (gzip, bzip2, xz, zstd), "
        "relative to the working directory; or its URL",
    ]
    with pytest.raises(ConfigError, match="the list 'samples' of the config: holds no sample"):
        read_samples([])


def test_a_list_is_taken_as_yaml_and_pandas_hand_it_over() -> None:
    table = pandas.DataFrame(
        {
            "sample": [1, 2, 3],
            "fasta": [Path("1.faa"), Path("2.fna"), Path("3.fna")],
            "kind": ["Proteins", None, pandas.NA],
            "label": [None, float("nan"), "Virus"],
            "models": ["", ["esm2", "dnabert_s"], pandas.NaT],
        }
    )
    config = check_config({**GOOD, "samples": table.to_dict("records")})
    assert list(read_samples(config["samples"]).values()) == [
        Sample("1", "1.faa", "proteins", "", ""),
        Sample("2", "2.fna", "contigs", "", "esm2,dnabert_s"),
        Sample("3", "3.fna", "contigs", "virus", ""),
    ]
    table["sample"] = table["sample"].astype(float)
    with pytest.raises(ConfigError, match=r"entry 1: 'sample' must be of type string \(write it in quotes\), is 1.0"):
        read_samples(check_config({**GOOD, "samples": table.to_dict("records")})["samples"])


def test_what_can_mean_one_thing_only_is_that() -> None:
    """Null in place of a section, what Snakemake makes of `--config "pool={threads: 1}"`, and objects for text."""
    filled = with_defaults(
        pool={"threads": "3", "lease_s": "1e2", "max_tasks_per_worker": "null", "spool": Path("/s"), "replicas": 2.0},
        method=None,
        classifier="None",
        container="",
        output_virnucpro="yes",
        seed=numpy.int64(7),
        calls={"margin": "0.25"},
        export="null",
        models={"a": {"weights": Path("w"), "layers": ["3", "last"], "long": "null", "sha256": None, "pooling": None}},
    )
    pool = filled["pool"]
    assert (pool["threads"], pool["lease_s"], pool["max_tasks_per_worker"]) == (3, 100.0, None)
    assert (pool["spool"], pool["replicas"]) == ("/s", 2)
    assert [type(value) for value in (pool["replicas"], filled["seed"])] == [int, int]
    assert filled["method"] == {"protein": None, "dna": None}
    assert (filled["classifier"], filled["container"], filled["export"]) == (None, None, None)
    assert (filled["output_virnucpro"], filled["seed"], filled["calls"]["margin"]) == (True, 7, 0.25)
    (model,) = filled["models"].values()
    assert model == {"weights": "w", **ASKED, "layers": [3, "last"]}
    assert with_defaults(pool=None) == with_defaults()


def test_a_home_directory_and_variables_in_paths_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("WHERE", "/there")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$WHERE").touch()
    text = "sample\tfasta\na\t~/a.fna\nb\t$WHERE/b.fna\nc\t${WHERE}/c.fna\nd\t$WHERE\ne\te$\nf\tf~\n"
    found = [entry.fasta for entry in read(sheet(tmp_path, text)).values()]
    assert found == ["/home/me/a.fna", "/there/b.fna", "/there/c.fna", "$WHERE", "e$", "f~"]
    models = {"a": {"weights": "~/a"}, "b": {"weights": "hub/name"}}
    filled = with_defaults(samples="~/s", classifier="$WHERE/c.pth", models=models, pool={"spool": "~/spool"})
    assert (filled["samples"], filled["classifier"]) == ("/home/me/s", "/there/c.pth")
    assert [entry["weights"] for entry in filled["models"].values()] == ["/home/me/a", "hub/name"]
    assert filled["pool"]["spool"] == "/home/me/spool"


def test_quotes_that_do_not_match_are_told_with_their_line(tmp_path: Path) -> None:
    lines = sheet_problems(sheet(tmp_path, 'sample\tfasta\na\t"a.fna\nb\t"b" c.fna\nc\tc"c.fna\n'))
    assert [line.partition(" (")[0] for line in lines] == [
        "line 2: quotes that do not match",
        "line 3: quotes that do not match",
    ]
    odd = {"a": Sample("a", '"a".fna', "dna", "", ""), "b": Sample("b", 'b"', "dna", "", "")}
    write_samples(odd.values(), tmp_path / "odd.tsv")
    assert read(tmp_path / "odd.tsv") == odd


def test_a_config_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^its config is not valid: it must hold keys and values, is 'con"):
        check_config("config.yaml", "its config")  # type: ignore[arg-type]


def samples(*rows: tuple[str, str, str]) -> dict[str, Sample]:
    return {name: Sample(name, f"{name}.fna", kind, label, "") for name, kind, label in rows}


def fit_problems(config: dict[str, Any], entries: dict[str, Sample]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_fit(config, entries)
    first, *lines = str(caught.value).splitlines()
    assert first == "the config and the sample sheet do not fit:"
    return [line.removeprefix("  ") for line in lines]


@pytest.mark.parametrize("name", [*RESERVED])
def test_a_model_has_no_name_of_a_column(name: str) -> None:
    """They lie beside each other in a results file."""
    assert fit_problems(with_defaults(models={name: {"weights": "a"}}), samples(("a", "proteins", ""))) == [
        f"models.{name}: the name is taken by a column of the results; choose another"
    ]
    check_fit(with_defaults(models={f"{name}2": {"weights": "a"}}), samples(("a", "proteins", "")))


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a.b", "a b", ".", "-a", "_a", "1a", "ä", "a\n", "a" * 65])
def test_a_model_has_a_name_that_files_and_tables_take(name: str) -> None:
    (line,) = problems({**GOOD, "models": {name: {"weights": "a"}}})
    rule = "begin with a letter and take letters, digits, _ and - (at most 64)"
    assert line == f"'models' is no name for a model; {rule}, is {name!r}"


def test_models_that_are_named_but_not_there_are_named(tmp_path: Path) -> None:
    config = with_defaults(method={"protein": "esm2", "dna": "dnabert2"})
    entries = {
        "a": Sample("a", "a.faa", "proteins", "", "esm2,esmc dnabert_s"),
        "b": Sample("b", "b.faa", "proteins", "", "esm2 , dnabert_s"),
    }
    assert fit_problems(config, entries) == [
        "samples.tsv: sample 'a' names the model esmc, but the config has esm2, dnabert_s",
        "method.dna: dnabert2 is none of the models, which are esm2, dnabert_s",
    ]
    check_fit(with_defaults(method={"protein": "esm2", "dna": "dnabert_s"}), {"b": entries["b"]})


def test_a_misspelt_column_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text("sample,fasta,lable,group\na,a.fna,virus,1\n")
    with pytest.raises(ConfigError, match=r"found sample, fasta, lable, group; 'lable': did you mean 'label'\?$"):
        read_samples(tmp_path / "samples.csv")


def test_labels_of_one_class_cannot_train() -> None:
    one = samples(("a", "contigs", "virus"), ("b", "contigs", "virus"), ("c", "contigs", ""))
    (line,) = fit_problems(with_defaults(), one)
    assert line.startswith("samples.tsv: every labelled sample is 'virus'; training needs samples of both labels")
    check_fit(with_defaults(), one | samples(("d", "contigs", "non-viral")))
    check_fit(with_defaults(), samples(("a", "contigs", "")))


def test_a_classifier_is_a_file_that_labels_calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.pth").touch()
    both = samples(("a", "contigs", "virus"), ("b", "contigs", "non-viral"))
    check_fit(with_defaults(classifier="c.pth"), both)
    check_fit(with_defaults(classifier="c.pth", calls={"max_fdr": 0.1}), both)
    (line,) = fit_problems(with_defaults(classifier="c.pth"), samples(("a", "contigs", "virus")))
    assert line.startswith("samples.tsv: every labelled sample is 'virus'; to calibrate the classifier takes")
    for wrong in ("none.pth", str(tmp_path)):
        (line,) = fit_problems(with_defaults(classifier=wrong), samples(("a", "contigs", "")))
        assert line == f"classifier: {wrong} is not a file (looked in {tmp_path})"


@pytest.mark.parametrize("key", ["max_fdr", "virus_share"])
def test_probabilities_need_something_that_calibrates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.safetensors").touch()
    config = with_defaults(classifier="c.safetensors", calls={key: 0.1})
    unlabelled = samples(("a", "contigs", ""))
    (line,) = fit_problems(config, unlabelled)
    assert line == f"calls.{key}: without labelled samples nothing is calibrated; label some, or remove it"
    (tmp_path / "calibration.json").touch()
    check_fit(config, unlabelled)
    (line,) = fit_problems(with_defaults(calls={"virus_score": 0.1}), unlabelled)
    assert line.startswith("calls.non_viral_score: 0.4 is above virus_score, 0.1")


def test_a_label_on_another_kind_is_refused() -> None:
    labelled = samples(("a", "contigs", "virus"), ("b", "contigs", "non-viral"), ("c", "proteins", "virus"))
    assert fit_problems(with_defaults(), labelled) == [
        "samples.tsv: sample 'c' has a label, but only samples of kind contigs train the classifier"
    ]


@pytest.mark.parametrize("name", ["classifier", "summary.tsv", "failures.tsv"])
def test_the_names_of_the_workflows_own_results_are_taken(name: str) -> None:
    (line,) = fit_problems(with_defaults(), samples((name, "contigs", "")))
    assert line == f"samples.tsv: sample '{name}': results/{name} is the workflow's own; choose another name"


def test_every_missing_file_is_named_with_its_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = ["a.fna", "b.fna", "directory", "pipe", "link.fna", "*.fna", "b.fna,c.fna"]
    entries = {f"s{number}": Sample(f"s{number}", path, "dna", "", "") for number, path in enumerate(paths)}
    (tmp_path / "b.fna").touch()
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.fna").symlink_to("gone.fna")
    with pytest.raises(ConfigError) as caught:
        check_files("samples.tsv", entries)
    assert str(caught.value).splitlines() == [
        "samples.tsv: sequence files are missing; correct the path (relative paths start at "
        f"{tmp_path}) or remove the line:",
        "  sample 's0': a.fna does not exist",
        "  sample 's2': directory is a directory; a line has one file",
        "  sample 's3': pipe is no regular file; a file is read more than once",
        "  sample 's4': link.fna is a link to gone.fna, which does not exist",
        "  sample 's5': *.fna does not exist; a line has one file, without patterns",
        "  sample 's6': b.fna,c.fna does not exist; a line has one file, without patterns",
    ]
    check_files("samples.tsv", {"s1": entries["s1"]})


def test_the_labelled_samples_are_those_of_the_sheet(tmp_path: Path) -> None:
    text = "sample\tfasta\tlabel\na\ta\tnon-viral\nb\tb\t\nc\tc\tvirus\nd\td\tnon-viral\n"
    found = labelled_files(sheet(tmp_path, text), Path("results"))
    assert found == [(Path(f"results/{name}/embeddings.h5"), label) for name, label in LABELLED]
