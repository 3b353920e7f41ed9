"""A classifier that is given: nothing is trained, every sample of contigs is called, VirNucPro's files can be had."""

from pathlib import Path

import numpy as np
import pandas  # type: ignore[import-untyped]
import torch
from holdfast.results.embeddings import read_embeddings
from torch.nn.functional import batch_norm, linear

from tests.workflow.conftest import DEMO, MEANS, NewProject, fasta, jobs, stop_free_sequence


def test_a_given_classifier_calls_all_contigs_and_trains_nothing(project: NewProject, classifiers: Path) -> None:
    some = project()
    some.configure(classifier=str(classifiers / "500_model.pth"), output_virnucpro=True)
    some.write("data/a.fna", fasta({f"a|{number}": stop_free_sequence(900, number) for number in range(12)}))
    some.write("data/b.fna", (DEMO / "data" / "phage_heldout.fna").read_bytes())
    some.write("data/p.faa", ">p\nMKV\n")
    some.write_sheet(
        ("a", "data/a.fna", "contigs", "virus"),
        ("b", "data/b.fna", "contigs", "non-viral"),
        ("p", "data/p.faa", "proteins"),
    )
    run = some.run()
    assert run.returncode == 0, run.text
    assert run.jobs == jobs("a", "b", "p", called=("a", "b"), once=["convert_classifier", "calibrate"])
    assert [path.name for path in some.path("results/classifier").iterdir()] == ["calibration.json"]
    assert "4 non-viral contigs with evidence are too few" in some.read("results/classifier/calibration.json")
    assert not some.path("results/p/frames.tsv").exists()

    # The network written out, on the stored features.
    found = read_embeddings(some.path("results/a/embeddings.h5"))
    features = np.concatenate([found.matrices[MEANS["dnabert_s"]], found.matrices[MEANS["esm2"]]], axis=1).astype(
        np.float32
    )
    state = torch.load(classifiers / "state.pth", weights_only=True)
    hidden = linear(torch.from_numpy(features), state["hidden_layer.weight"], state["hidden_layer.bias"])
    statistics = [state[f"bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    hidden = batch_norm(hidden, *statistics).relu()
    logits = linear(hidden, state["output_layer.weight"], state["output_layer.bias"])
    expected = logits.softmax(dim=1).numpy()
    frames = some.table("a/frames.tsv")
    assert frames["frame_id"].tolist() == found.ids
    np.testing.assert_allclose(frames[["p_non_viral", "p_virus"]].astype(float), expected, rtol=0, atol=1e-5)
    assert expected[:, 1].std() > 0.01

    for sample in ("a", "b"):
        check_virnucpro(some.path(f"results/{sample}"))


def check_virnucpro(directory: Path) -> None:
    """VirNucPro's two files are what its pandas code makes of the frames."""
    options = {"sep": "\t", "quoting": 3, "keep_default_na": False}
    frames = pandas.read_csv(directory / "frames.tsv", **options)
    results = pandas.read_csv(directory / "virnucpro" / "prediction_results.txt", **options)
    assert results.columns.tolist() == ["Sequence_ID", "Prediction", "score1", "score2"]
    assert results["Sequence_ID"].tolist() == frames["frame_id"].tolist()
    np.testing.assert_array_equal(results[["score1", "score2"]], frames[["p_non_viral", "p_virus"]])
    expected = np.where(frames["p_virus"] > frames["p_non_viral"], "virus", "others")
    assert results["Prediction"].tolist() == expected.tolist()

    chunk = results["Sequence_ID"].str[:-2]
    largest = results.groupby(chunk)[["score1", "score2"]].max()
    highest = pandas.read_csv(directory / "virnucpro" / "prediction_results_highestscore.csv", **options)
    assert highest.columns.tolist() == ["Modified_ID", "Is_Virus"]
    assert highest["Modified_ID"].tolist() == largest.index.tolist()
    assert highest["Is_Virus"].tolist() == (largest["score2"] >= largest["score1"]).tolist()
