"""Summary and report: counts against a table by hand, figures as drawn, and how small a thousand samples stay."""

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair
import jsonschema
import numpy as np
import pytest
import vl_convert
from holdfast.errors import ConfigError, InputError, ResourceError
from holdfast.models.registry import Output
from holdfast.report import tally
from holdfast.report.charts import RED, Choices, chart_of, render, specify, whole
from holdfast.report.figures import FIGURES, make_figure
from holdfast.report.page import SAMPLE_COLUMNS, VEGA, write_report
from holdfast.report.pools import throughput
from holdfast.report.projection import pca, umap
from holdfast.report.results import Results, read_results
from holdfast.report.summary import SUMMARY_COLUMNS, write_summary
from holdfast.report.tally import Tally, count_results
from holdfast.results.calibration import Calibration, calibrate, load_calibration
from holdfast.results.calls import call_contigs
from holdfast.results.classifier import Classifier
from holdfast.results.contigs import read_contigs
from holdfast.results.embeddings import RECORD_STATUSES, EmbeddingsFile
from holdfast.results.presets import PRESETS
from holdfast.results.writer import EmbeddingsWriter
from holdfast.run.config import read_samples
from holdfast.run.failures import write_failures
from holdfast.spool.job import Receipt
from holdfast.spool.progress import History, Moment
from sklearn.decomposition import PCA

from tests.results.samples import Place, Record, describe_model, write_results

REPOSITORY = Path(__file__).parents[2]
REPORT = REPOSITORY / "workflow" / "report"
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</script><script>alert(1)</script>"
LONG = "a_sample_with_a_name_that_is_much_too_long_for_any_axis_and_differs_at_its_end_"
WIDTHS = {"esm2": 6, "dnabert_s": 4}

# Record, its length in bp and its status; then record, chunk, frame, P(non-viral), P(virus).
RECORDS = [("c1", 501, "ok"), (HOSTILE, 1200, "ok"), ("none", 400, "ok"), ("two", 2, "too_short"), ("b", 600, "failed")]
ROWS = [
    *[(0, 1, 0, 0.25, 0.75), (0, 1, 4, 0.875, 0.125), (0, 2, 2, 0.0, 1.0)],
    *[(1, 1, 1, 0.75, 0.25), (1, 3, 0, 0.75, 0.25), (1, 3, 3, 0.75, 0.25), (1, 3, 5, 0.75, 0.25)],
]


def write_sample(
    directory: Path,
    kind: str,
    records: Sequence[Record],
    rows: Sequence[tuple[int, int, int, float, float]],
    called: bool = False,
    pool: str = "p1",
    calibration: Calibration | None = None,
) -> None:
    """Write receipt, embeddings and calls of one sample with the writers of the workflow."""
    directory.mkdir(parents=True)
    models = {"contigs": ("esm2", "dnabert_s"), "proteins": ("esm2",), "dna": ("dnabert_s",)}[kind]
    chance = np.random.default_rng(len(rows))
    matrices = {model: chance.normal(size=(len(rows), WIDTHS[model])) for model in models}
    places: list[Place] = [row[:3] for row in rows]
    path = write_results(directory / "embeddings.h5", records, places, matrices, kind, synthetic=["esm2"])
    if called:
        with EmbeddingsFile(path) as reader:
            probabilities = np.array([row[3:] for row in rows], np.float32).reshape(-1, 2)
            classified = zip(reader.blocks(), [probabilities], strict=False)
            call_contigs(reader, classified, PRESETS["relaxed"], directory, calibration=calibration)
    with EmbeddingsFile(path) as reader:
        statuses = Counter(status for block in reader.record_blocks() for status in block.status)
        genetic_code = reader.genetic_code
    counts = {"records": len(records), "letters": sum(length for _, length, _ in records), "rows": len(rows)}
    counts |= {status: statuses[status] for status in RECORD_STATUSES}
    counts |= {"tokens": 100 * len(rows) * len(models), "sequences": len(rows) * len(models)}
    counts |= {"computed_tokens": 50 * len(rows), "inherited": 3, "cached": 2}
    made_by: dict[str, str | float] = {"id": pool, "devices": "CPU, 2 threads", "load_s": 2.5, "precision": "fp32"}
    made_by |= {"device_s": 5.0, "ready_s": 8.0}
    seconds = {"read_s": 0.5, "device_s": 1.25, "total_s": 4.0}
    described: dict[str, Any] = {
        "pool": made_by,
        "genetic_code": genetic_code,
        "synthetic": ["esm2"] * ("esm2" in models),
    }
    receipt = Receipt("j", directory.name, "done", run="run-1", counts=counts, seconds=seconds, **described)
    receipt.write(directory / "receipt.json")


def write_sheet(root: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    sheet = root / "samples.tsv"
    lines = [f"{name}\tx.fa\t{kind}\t{label}" for name, kind, label in rows]
    sheet.write_text("\n".join(["sample\tfasta\tkind\tlabel", *lines]) + "\n")
    return sheet


def results_of(root: Path, results: Path, called: bool = True) -> Results:
    """The results of a sheet at ``root``; the failures are taken from the receipts."""
    failures = root / "failures.tsv"
    write_failures(read_samples(root / "samples.tsv"), results, failures)
    classifier = results / "classifier" / "classifier.safetensors"
    return read_results(root / "samples.tsv", results, failures, classifier if called else None, trained=True)


def write_classifier(results: Path) -> None:
    """Write a classifier of zeros for the widths of the two models."""
    (results / "classifier").mkdir(parents=True, exist_ok=True)
    width, hidden = sum(WIDTHS.values()), 2
    state = {"hidden_layer.weight": np.zeros((hidden, width)), "output_layer.weight": np.zeros((2, hidden))}
    state |= {"hidden_layer.bias": np.zeros(hidden), "output_layer.bias": np.zeros(2)}
    state |= {f"bn1.{name}": np.ones(hidden) for name in ("weight", "bias", "running_mean", "running_var")}
    arrays = {name: array.astype(np.float32) for name, array in state.items()}
    arrays["bn1.num_batches_tracked"] = np.array(1, np.int64)
    Classifier(arrays, {}, "made by a test").save(results / "classifier" / "classifier.safetensors")
    (results / "classifier" / "history.tsv").write_text(
        "epoch\tloss\theld_out_loss\theld_out_accuracy\n1\t0.7\t0.6\t0.5\n2\t0.4\t0.5\t0.75\n"
    )
    chance = np.random.default_rng(4)
    score, label = chance.random(200), np.arange(200) % 2
    made = calibrate((score + label) / 2, label, "contigs", 0.2, results / "classifier" / "classifier.safetensors")
    made.write(results / "classifier" / "calibration.json")
    (results / "classifier" / "confusion.tsv").write_text("label\tnon-viral\tvirus\nnon-viral\t30\t10\nvirus\t0\t5\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of four samples: called, without a frame, labelled, proteins; two pools, one of which left a record."""
    root = tmp_path_factory.mktemp("run")
    results = root / "results"
    write_sample(results / f"{LONG}1", "contigs", RECORDS, ROWS, called=True)
    write_sample(results / f"{LONG}2", "contigs", [("n", 700, "ok")], [], called=True)
    write_sample(results / "train", "contigs", RECORDS[:3], ROWS, pool="../p2")
    write_sample(
        results / "proteins", "proteins", [(f"p{n}", 50, "ok") for n in range(4)], [(n, 0, 0, 0, 0) for n in range(4)]
    )
    sheet = [(f"{LONG}1", "contigs", ""), (f"{LONG}2", "contigs", ""), ("train", "contigs", "virus")]
    write_sheet(root, [*sheet, ("proteins", "proteins", "")])
    (root / "spool" / "pools").mkdir(parents=True)
    history = History(root / "spool" / "pools" / "p1.tsv")
    for second in range(11):
        history.note(Moment(1000.0 + second, 2, min(second, 5) * 400, min(second, 5) * 1.0), False)
    history.write()
    write_classifier(results)
    return root


@pytest.fixture(scope="module")
def counted(root: Path) -> Tally:
    return count_results(results_of(root, root / "results"), root / "spool", seed=1)


def texts(svg: str) -> str:
    """The text of a figure; it is well-formed, and refers to nothing outside."""
    tree = ElementTree.fromstring(svg)
    assert not re.search(r"""(href|src)=["']?(?!#)|url\((?!#)""", svg)
    return "\n".join("".join(element.itertext()) for element in tree.iter(f"{SVG}text"))


def test_everything_is_counted_as_by_hand(counted: Tally) -> None:
    called, frameless, train, proteins = counted.samples
    # c1 has margins -0.125 and 1, with weights 0.625 and 1, and scores 0.78; the hostile one, with -0.5 twice, 0.25.
    assert called.outcomes == {"virus": 1, "non-viral": 1, "no_stop_free_frame": 1, "too_short": 1, "failed": 1}
    assert frameless.outcomes == Counter(no_stop_free_frame=1)
    assert train.outcomes == Counter(embedded=2, no_stop_free_frame=1)
    assert proteins.outcomes == Counter(embedded=4)
    assert {int(place): int(called.scores[place]) for place in np.flatnonzero(called.scores)} == {12: 1, 39: 1}
    # 2 + 3 + 1 + 1 + 2 chunks, of which three have one, two or three frames and one has one.
    assert called.frames.tolist() == [5, 2, 1, 1, 0, 0, 0]
    assert frameless.frames.tolist() == [2, 0, 0, 0, 0, 0, 0]
    assert train.frames.tolist() == [2, 2, 1, 1, 0, 0, 0]
    assert not proteins.frames.any()
    assert counted.lengths.total() == counted.contig_count == 6
    assert counted.lengths[1000.0, "non-viral"] == 1  # 1,200 bp
    assert [(call.contig, call.decision) for _, call in counted.contigs[:2]] == [
        ("c1", "virus"),
        (HOSTILE, "non-viral"),
    ]
    assert {call.score for _, call in counted.contigs[2:]} == {None}
    assert counted.synthetic == ["esm2"]
    first, second = counted.pools["p1"], counted.pools["../p2"]
    assert (first.samples, first.load_s, first.device_s, first.tokens) == (3, 2.5, 3.75, 1800)
    assert [moment.time_s for moment in first.moments] == [1000, 1001, 1002, 1003, 1004, 1005, 1010]
    assert second.moments == []
    assert Counter(counted.points["esm2"].groups) == {
        "called virus": 3,
        "called non-viral": 4,
        "labelled virus": 7,
        "proteins": 4,
    }
    assert counted.points["dnabert_s"].matrix.shape == (14, WIDTHS["dnabert_s"])


def test_points_are_a_repeatable_choice_of_all_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "POINTS", 6)
    results = results_of(root, root / "results")
    once, again, other = (count_results(results, root / "spool", seed=seed).points["esm2"] for seed in (3, 3, 4))
    assert once.matrix.tolist() == again.matrix.tolist() != other.matrix.tolist()
    assert (len(once.matrix), once.rows) == (6, 18)


def test_every_figure_says_what_was_counted(counted: Tally, root: Path) -> None:
    trained = root / "results/classifier"
    choices = Choices(root / "results", trained / "classifier.safetensors", trained / "calibration.json")
    made = {name: make_figure(name, counted, choices) for name in FIGURES}
    for figure in made.values():
        jsonschema.validate(figure.specification(counted.synthetic), altair.vegalite.v6.schema.core.load_schema())
    drawn = {name: figure.svg(counted.synthetic) for name, figure in made.items()}
    found = {name: texts(svg) for name, svg in drawn.items()}
    for name, text in found.items():
        assert FIGURES[name][0] in text
        assert "Synthetic weights (esm2): this says nothing about biology." in text
        assert f'fill="{RED}"' in drawn[name]
    for end in ("1", "2"):
        assert f"{LONG[:17]}…{(LONG + end)[-16:]}" in found["outcomes"]
    for outcome in ("virus", "non-viral", "embedded", "no stop-free frame", "too short", "failed"):
        assert outcome in found["outcomes"].splitlines()
    assert {"non-viral 0.4", "virus 0.6"} < set(found["scores"].splitlines())
    assert "18 sequences, seed 1" in found["embeddings"]
    assert {"30 (75%)", "10 (25%)", "0 (0%)", "5 (100%)"} < set(found["confusion"].splitlines())
    known = load_calibration(trained / "calibration.json")
    assert f"Brier score {known.brier:.3f} (200 contigs, sigmoid)" in found["calibration"]
    assert {"estimated", "observed"} < set(found["calibration"].splitlines())
    assert "this run: 2 loads" in found["load"]
    assert "a load in each of 4 samples" in found["load"]
    assert {"50% loading", "67% loading"} < set(found["load"].splitlines())  # 5 s and 10 s of 5 s of work


def test_the_pace_becomes_tokens_per_second_and_busy_share(counted: Tally) -> None:
    chart = throughput(counted, Choices(Path("x")))
    assert not isinstance(chart, str)
    rows = chart.to_dict()["data"]["values"]
    assert [(row["seconds"], row["tokens_per_s"], row["busy"]) for row in rows] == [
        *[(float(second), 400.0, 0.5) for second in range(5)],
        *[(float(second), 0.0, 0.0) for second in range(5, 11)],
    ]


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "load"])
def test_a_figure_without_anything_to_show_says_so_in_one_line(name: str) -> None:
    figure = make_figure(name, Tally(), Choices(Path("x")))
    assert isinstance(figure.chart, str)
    assert re.match(r"No |Fewer than ", figure.chart)
    assert figure.specification([]) is None
    assert sorted(texts(figure.svg([])).splitlines()) == sorted([FIGURES[name][0], figure.chart])


@pytest.mark.parametrize(("largest", "ticks"), [(1, "0 1"), (2, "0 1 2"), (4, "0 1 2 3 4"), (5, "0 1 2 3 4 5")])
def test_few_contigs_are_counted_by_whole_ticks(largest: int, ticks: str) -> None:
    chart = chart_of([{"x": 1, "contigs": largest}], height=150).mark_bar().encode(x="x:Q", y=whole("contigs", largest))
    assert texts(render(specify(chart, ""))).split("contigs")[0].split()[-len(ticks.split()) :] == ticks.split()


def test_a_table_of_the_classifier_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "classifier").mkdir()
    table = tmp_path / "classifier" / "confusion.tsv"
    header = "label\tnon-viral\tvirus\n"
    for content in ("", "label\tvirus\n", f"{header}virus\tfew\t1\n", f"{header}virus\t1\n"):
        table.write_text(content)
        with pytest.raises(InputError, match=r"confusion\.tsv.*train the classifier again"):
            make_figure("confusion", Tally(), Choices(tmp_path, tmp_path / "classifier.safetensors"))


def test_what_is_missing_or_does_not_fit_is_named(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_sample(results / "s", "contigs", RECORDS, ROWS, called=True)
    write_sheet(tmp_path, [("s", "contigs", "")])
    table = results / "s" / "contigs.tsv"
    whole = table.read_text()
    wrong: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: table.write_text("contig\n"), InputError, "line 1: not a table of contigs"),
        (lambda: table.write_text(whole.replace("True", "perhaps")), InputError, "line 2: not a line of a table"),
        (
            lambda: table.write_text(whole.rsplit("b\t", 1)[0]),
            InputError,
            "has fewer contigs than the sample",
        ),
        (lambda: (results / "s" / "receipt.json").unlink(), ResourceError, r"receipt\.json: is missing; run again"),
    ]
    for spoil, error, message in wrong:
        spoil()
        with pytest.raises(error, match=message):
            count_results(results_of(tmp_path, results), tmp_path, seed=1)


def test_the_summary_has_a_row_a_sample(root: Path, tmp_path: Path) -> None:
    write_summary(results_of(root, root / "results"), tmp_path / "summary.tsv")
    header, *lines = [line.split("\t") for line in (tmp_path / "summary.tsv").read_text().splitlines()]
    assert tuple(header) == SUMMARY_COLUMNS
    called, frameless, train, proteins = (dict(zip(header, line, strict=True)) for line in lines)
    # Three samples share the load of p1, 2.5 s, evenly, since each had 1.25 s of its devices; p2 has one.
    digest = hashlib.sha256((root / "results/classifier/classifier.safetensors").read_bytes()).hexdigest()
    assert " ".join(called.values()) == (
        f"{LONG}1 contigs  done 5 2703  1 1 0 0 1  0 1 3 0 0 1 1 0 0 1 7 14 1400 3 2 2.5 0.833 0.5 1.25 4.0 280 0.625 "
        f"fp32 CPU, 2 threads esm2 {digest} run-1"
    )
    assert [frameless[name] for name in ("virus", "ambiguous", "non_viral", "not_called")] == ["0", "0", "0", "1"]
    assert (train["label"], train["virus"], train["load_share_s"]) == ("virus", "", "2.5")
    assert [called[status] for status in ("no_stop_free_frame", "too_short", "failed", "rows")] == ["1", "1", "1", "7"]
    assert (proteins["kind"], proteins["tokens"], proteins["virus"]) == ("proteins", "400", "")
    assert (proteins["length_bp"], proteins["length_aa"], proteins["classifier_sha256"]) == ("", "200", "")


def test_a_sample_that_failed_has_a_row_and_stands_in_red_above_all(tmp_path: Path) -> None:
    """What lies in its directory from before counts for nothing, and is said to be left over."""
    results = tmp_path / "results"
    for name in ("good", "bad"):
        write_sample(results / name, "contigs", RECORDS, ROWS, called=True)
    Receipt("j", "bad", "failed", "bad.fna, line 3: <b>no</b> letter").write(results / "bad" / "receipt.json")
    write_classifier(results)
    write_sheet(tmp_path, [("good", "contigs", ""), ("bad", "contigs", "")])
    text, _ = written_report(tmp_path, results)
    rows = [line.split("\t") for line in (tmp_path / "summary.tsv").read_text().splitlines()]
    assert [row[:5] for row in rows[1:]] == [["good", "contigs", "", "done", "5"], ["bad", "contigs", "", "failed", ""]]
    assert "1 of 2 samples failed" in text
    assert "<li><b>bad</b>: bad.fna, line 3: &lt;b&gt;no&lt;/b&gt; letter</li>" in text
    assert text.index("1 of 2 samples failed") < text.index('id="samples"')
    assert "1 of 5 contigs called virus (0 high, 0 moderate, 1 low), 0 ambiguous, 3 not called" in text
    assert "Calls of an earlier run, which count no more, lie in the directories of bad." in text
    assert len(contigs_of(text)) == 5


def test_what_became_of_long_proteins_is_counted_and_drawn(tmp_path: Path) -> None:
    statuses = ("ok", "truncated", "windowed", "too_long", "bad_letters")
    records = [(f"p{number}", 50, status) for number, status in enumerate(statuses)]
    write_sample(tmp_path / "results" / "s", "proteins", records, [(number, 0, 0, 0, 0) for number in range(3)])
    write_sheet(tmp_path, [("s", "proteins", "")])
    results = results_of(tmp_path, tmp_path / "results", called=False)
    counted = count_results(results, tmp_path, seed=1)
    assert counted.samples[0].outcomes == Counter(embedded=1, truncated=1, windowed=1, too_long=1, bad_letters=1)
    drawn = texts(make_figure("outcomes", counted, Choices(tmp_path)).svg([])).splitlines()
    assert {"embedded", "truncated", "windowed", "too long", "bad letters"} <= set(drawn)
    write_summary(results, tmp_path / "summary.tsv")
    header, line = ((tmp_path / "summary.tsv").read_text().splitlines()[n].split("\t") for n in (0, 1))
    row = dict(zip(header, line, strict=True))
    assert [row[status] for status in (*statuses[1:], "too_short")] == ["1", "1", "1", "1", "0"]


def test_points_are_the_means_of_the_last_layer_or_what_there_is_in_their_place(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_sample(results / "s", "proteins", [("p", 2, "ok")], [(0, 0, 0, 0, 0)])
    made = {("both", 0, "mean"): 1.0, ("both", 2, "mean"): 2.0, ("both", 2, "max"): 3.0, ("highest", 2, "max"): 4.0}
    with EmbeddingsWriter.create(results / "s/embeddings.h5", "s", "proteins") as writer:
        writer.append_records(["p"], [2], [2], ["ok"])
        writer.append_rows(["p"], [2], [bytes(32)], [0], [0], [0])
    with EmbeddingsWriter.reopen(results / "s/embeddings.h5", {}) as writer:
        for (model, layer, pooling), value in made.items():
            values = np.full((1, 4), value, np.float32)
            writer.write_matrix(model, describe_model(4), Output(layer, pooling), "float32", "fp32", [values])
        output, values = Output(2, "residues"), np.zeros((2, 4), np.float32)
        writer.write_residues("single", describe_model(4), output, "float32", "fp32", np.array([2]), [values])
    write_sheet(tmp_path, [("s", "proteins", "")])
    counted = count_results(results_of(tmp_path, results, called=False), tmp_path, seed=1)
    assert {model: points.matrix.tolist() for model, points in counted.points.items()} == {
        "both": [[2.0] * 4],
        "highest": [[4.0] * 4],
    }


@pytest.mark.parametrize("shape", [(60, 7), (5, 40), (2, 3)])
def test_principal_components_are_those_of_scikit_learn(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(5).normal(size=shape) * np.arange(1, shape[1] + 1) + 100
    expected = PCA(2, svd_solver="full").fit(matrix)
    found, shares = pca(matrix.astype(np.float32))
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(np.abs(found), np.abs(expected.transform(matrix)), rtol=2e-3, atol=2e-2)
    assert (found[np.abs(found).argmax(axis=0), [0, 1]] >= 0).all()


def test_umap_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(
        ConfigError,
        match=f"umap-learn is not installed; set projection: pca, or run {sys.executable} -m pip install umap-learn",
    ):
        umap(np.zeros((5, 3)), 1)


@pytest.mark.filterwarnings("default")
def test_umap_keeps_neighbours_together_and_is_repeatable() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed, being no dependency; .ci/run installs it")
    chance = np.random.default_rng(2)
    matrix = np.concatenate([chance.normal(size=(40, 20)), chance.normal(size=(40, 20)) + 9])
    places = umap(matrix, 7)
    assert places.tolist() == umap(matrix, 7).tolist()
    left, right = places[:40], places[40:]
    apart = np.linalg.norm(left.mean(axis=0) - right.mean(axis=0))
    assert apart > 2 * max(left.std(axis=0).max(), right.std(axis=0).max())


def written_report(root: Path, results: Path) -> tuple[str, int]:
    """Write all of it; the page, and bytes of page and figures together."""
    found = results_of(root, results)
    write_summary(found, root / "summary.tsv")
    calibration = results / "classifier" / "calibration.json"
    choices = Choices(results, found.classifier, calibration if calibration.exists() else None)
    captions = [REPORT / f"{name}.rst" for name in FIGURES]
    counted, script = count_results(found, root / "spool", seed=1), vl_convert.javascript_bundle(VEGA)
    write_report(found, root / "summary.tsv", root / "runs", counted, choices, REPORT / "page.html", captions, script)
    made = [results / "report.html", *(results / "figures" / f"{name}.svg" for name in FIGURES)]
    return made[0].read_text(), sum(file.stat().st_size for file in made)


def data_of(page: str, name: str) -> dict[str, Any]:
    """Data of a page's script."""
    found = re.search(rf"const {name} = (.*);\n", page)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def contigs_of(page: str) -> list[list[Any]]:
    """The table of contigs of a page."""
    rows: list[list[Any]] = data_of(page, "contigs")["rows"]
    return rows


def test_the_page_is_whole_and_names_from_headers_stay_data(root: Path) -> None:
    text, _ = written_report(root, root / "results")
    assert "Synthetic weights: esm2 has seeded random weights" in text
    assert text.count("<figure ") == text.count("<figcaption>") == len(FIGURES)
    assert text.count('role="img" aria-label="') == len(FIGURES)
    assert all(f'<h3><a href="#{name}">' in text and f'<li><a href="#{name}">' in text for name in FIGURES)
    assert data_of(text, "figures").keys() == FIGURES.keys()
    assert "system-message" not in text  # of docutils
    assert text.count("</script>") == 2
    assert [row[1] for row in contigs_of(text)[:2]] == ["c1", HOSTILE]
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(href|src)=(?!"#)""", own)
    assert "http" not in own
    assert "classifier.safetensors, sha256 " in own
    assert "made by a test; labelled samples: train (virus)" in own
    assert "calibrated on 100 virus and 100 non-viral contigs (sigmoid), Brier score 0." in own
    samples = data_of(text, "samples")
    assert samples["columns"] == list(SAMPLE_COLUMNS.values())
    assert samples["rows"][0] == [
        *(f"{LONG}1", "contigs", "", "done", 5, 2, 1, 0, 0, 1, None, 0, 1, 3, 1, 0.003, 4),
    ]
    assert samples["rows"][3][5:14] == [None] * 9


def test_the_false_discoveries_of_the_list_are_said(tmp_path: Path) -> None:
    """Three viruses of five contigs; the estimate is the mean of 1 - p_virus over them."""
    results = tmp_path / "results"
    write_classifier(results)
    calibration = load_calibration(results / "classifier/calibration.json")
    records = [(f"c{number}", 500, "ok") for number in range(5)]
    shares = (1.0, 0.875, 0.8125, 0.5, 0.125)
    rows = [(number, 1, 0, 1 - share, share) for number, share in enumerate(shares)]
    write_sample(results / "s", "contigs", records, rows, called=True, calibration=calibration)
    write_sheet(tmp_path, [("s", "contigs", "")])
    text, _ = written_report(tmp_path, results)
    found = [call for call in read_contigs(results / "s/contigs.tsv") if call.is_virus]
    p_virus = calibration.apply(np.array(shares[:3]))  # margins of one chunk of full weight: the score is the share
    np.testing.assert_allclose([call.p_virus for call in found], p_virus, atol=1e-6)
    fdr = float(np.mean(1 - p_virus))
    header, line = ((tmp_path / "summary.tsv").read_text().splitlines()[number].split("\t") for number in (0, 1))
    assert float(dict(zip(header, line, strict=True))["virus_fdr"]) == pytest.approx(fdr, rel=1e-3)
    assert f"an estimated {fdr:.1%} of the 3 contigs called virus are none" in text
    (results / "classifier/calibration.json").unlink()
    text, _ = written_report(tmp_path, results)
    assert "uncalibrated: a score orders contigs" in text


def test_a_figure_that_is_no_longer_drawn_is_removed(tmp_path: Path) -> None:
    results = tmp_path / "results"
    write_sample(results / "s", "contigs", RECORDS, ROWS, called=True)
    write_classifier(results)
    (results / "figures").mkdir()
    (results / "figures" / "old.svg").write_text("<svg/>")
    write_sheet(tmp_path, [("s", "contigs", "")])
    written_report(tmp_path, results)
    assert sorted(path.stem for path in (results / "figures").iterdir()) == sorted(FIGURES)


def test_a_thousand_samples_stay_small(tmp_path: Path) -> None:
    """Every sample has its row; what Snakemake takes in as base64 stays below ten megabytes."""
    results = tmp_path / "results"
    records = [(f"NODE_{n}_length_{500 + 37 * n}_cov_{n}.25", 500 + 37 * n, "ok") for n in range(100)]
    chance = np.random.default_rng(8)
    rows = [(n, 1, frame, 1 - p, p) for n in range(95) for frame, p in enumerate(chance.random(2).round(3).tolist())]
    names = [f"{LONG}{number}" for number in range(1000)]
    write_sample(results / names[0], "contigs", records, rows, called=True)
    for name in names[1:]:
        (results / name).mkdir()
        for file in ("embeddings.h5", "contigs.tsv", "receipt.json"):
            os.link(results / names[0] / file, results / name / file)
    write_classifier(results)
    write_sheet(tmp_path, [(name, "contigs", "") for name in names])
    text, size_bytes = written_report(tmp_path, results)
    assert size_bytes * 4 / 3 < 10_000_000
    assert [row[0] for row in data_of(text, "samples")["rows"]] == names
    assert "The first 20,000 of 100,000 contigs" in text
    listed = contigs_of(text)
    assert len(listed) == tally.LISTED
    order = [(row[5] != "virus", ("high", "moderate", "low").index(row[6]), -row[7]) for row in listed]
    assert order == sorted(order)
    assert "20,000 of 190,000 sequences, seed 1" in text
    assert "(961 other samples)" in text
