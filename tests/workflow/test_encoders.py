"""Several encoders in one run: layers and poolings of each, residues, long sequences in the open, and the exports."""

import csv

import h5py
import numpy as np
import torch
from holdfast.models.registry import load_tokenizer, open_model, read_prepared
from holdfast.results.embeddings import RECORD_STATUSES, read_embeddings

from tests.workflow.conftest import NewProject, fasta

PROTEINS = {"p1": "MKVLAAGGIVA*", "p2": "M", "p3": "*", "p4": "ACDEFGHIKL" * 12}
MODELS = {
    "small": {
        "weights": "synthetic:esm2_t6_8M_UR50D",
        "layers": [0, "last"],
        "pooling": ["mean", "max", "cls", "residues"],
    },
    "larger": {"weights": "synthetic:esm2_t12_35M_UR50D", "layers": 5, "long": "truncate", "max_length": 100},
    "esm_c": {"weights": "synthetic:esmc_tiny", "pooling": "residues", "long": "window", "max_length": 40},
}


def test_two_sizes_of_a_family_and_another_family_embed_one_sample(project: NewProject) -> None:
    some = project()
    some.configure(models=MODELS, precision="fp32", store_dtype="float32", export="uniprot", pool={"device": "cpu"})
    some.write("data/p.faa", fasta(PROTEINS))
    some.write_sheet(("p", "data/p.faa", "proteins"))
    run = some.run()
    assert run.returncode == 0, run.text

    with open(some.path("results/p/records.tsv"), newline="") as table:
        records = {line["record"]: line for line in csv.DictReader(table, delimiter="\t")}
    assert [(name, line["length"], line["residues_used"], line["status"]) for name, line in records.items()] == [
        ("p1", "11", "11", "ok"),
        ("p2", "1", "1", "ok"),
        ("p3", "0", "0", "too_short"),
        ("p4", "120", "100", "truncated"),
    ]
    assert records["p4"]["reason"] == "larger saw the first 100 (long: truncate)"
    warning = "not all records were embedded as they are (1 truncated, 1 too_short); the table of records says which"
    assert warning in some.read("logs/pool.0.log")

    found = read_embeddings(some.path("results/p/embeddings.h5"))
    rows = ["p1", "p2", "p4"]
    assert found.ids == rows
    assert found.length.tolist() == [11, 1, 100]
    poolings = [f"small/{layer}/{pooling}" for layer in (0, 6) for pooling in ("mean", "cls", "max")]
    assert sorted(found.matrices) == sorted([*poolings, "larger/5/mean"])
    assert sorted(found.residues) == ["esm_c/3/residues", "small/0/residues", "small/6/residues"]

    directory = some.path("resources/small")
    known, encoder = read_prepared(directory), open_model(directory, "cpu", "fp32")
    tokenize = load_tokenizer(known, directory)
    for row, name in enumerate(rows):
        numbers, lengths = tokenize([PROTEINS[name].rstrip("*")])
        for layer in (0, 6):
            states = encoder.encode(torch.from_numpy(numbers), lengths.tolist(), layer).numpy()
            expected = {"mean": states[1:-1].mean(0), "max": states[1:-1].max(0), "cls": states[0]}
            for pooling, vector in expected.items():
                np.testing.assert_allclose(found.matrices[f"small/{layer}/{pooling}"][row], vector, atol=2e-5)
            np.testing.assert_allclose(found.residues[f"small/{layer}/residues"][row], states[1:-1], atol=2e-5)

    # As bio_embeddings and UniProt's readers do it: a dataset an id, without our package.
    for name, per, shape in (
        ("small", "residue", (120, 320)),
        ("larger", "protein", (480,)),
        ("esm_c", "residue", (120, 64)),
    ):
        with h5py.File(some.path(f"results/p/uniprot/{name}/per-{per}.h5")) as file:
            assert {dataset.attrs["original_id"] for dataset in file.values()} == set(rows)
            assert file["p4"].shape == shape
    with h5py.File(some.path("results/p/embeddings.h5")) as file:
        assert h5py.check_enum_dtype(file["records/status"].dtype) == {
            status: code for code, status in enumerate(RECORD_STATUSES)
        }
        offsets = file["small/6/offsets"][:]
        assert offsets.tolist() == [0, 11, 12, 132]
        np.testing.assert_array_equal(
            file["small/6/residues"][offsets[1] : offsets[2]], found.residues["small/6/residues"][1]
        )


def test_what_no_model_can_give_is_said_before_anything_is_embedded(project: NewProject) -> None:
    some = project()
    some.write("data/p.faa", fasta(PROTEINS))
    for asked, words in (
        ({"layers": [7]}, "models.esm2.layers: 7 is beyond the model, whose layers are 0 to 6"),
        ({"pooling": ["cls"], "long": "window"}, "models.esm2.pooling: cls makes no sense where long is window"),
        ({"long": "truncate"}, "models.esm2.long: truncate needs models.esm2.max_length"),
    ):
        some.configure(models={"esm2": some.models["esm2"] | asked})
        some.write_sheet(("p", "data/p.faa", "proteins"))
        run = some.run()
        assert run.returncode != 0
        assert words in run.text
        assert "Traceback" not in run.text
        assert run.jobs == []
    some.configure(models={"esm2": some.models["esm2"]})
    some.write_sheet(("d", "data/p.faa", "dna"))
    run = some.run()
    assert "sample 'd' is of kind dna, but no model of the config embeds nucleotide sequences" in run.text
    assert run.jobs == []
