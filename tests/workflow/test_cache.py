"""Two projects with one cache, by real Snakemake: the second computes what is new, and says where the rest is from."""

import json

import numpy as np
from holdfast.results.embeddings import read_embeddings

from tests.workflow.conftest import MEANS, NewProject, fasta, stop_free_sequence


def test_a_second_project_computes_only_what_is_new_and_names_the_first(project: NewProject) -> None:
    contigs = {f"c{number}": stop_free_sequence(300, number) for number in range(9)}
    first, second = project("first"), project("second")
    for some in (first, second):
        some.configure(cache="../vectors")
        some.write_sheet(("a", "data/a.fna"))
    first.write("data/a.fna", fasta(contigs))
    second.write("data/a.fna", fasta(contigs | {"c9": stop_free_sequence(300, 9)}))
    run = first.run()
    assert run.returncode == 0, run.text
    (row,) = first.table("summary.tsv").to_dict("records")
    assert (row["cached_vectors"], row["distinct_sequences"]) == ("0", "108")  # 9 contigs, 6 frames, 2 models
    made = json.loads(first.read("results/run.json"))
    assert (made["reused"]["cached"], made["reused"]["origins"]) == (0, [])

    run = second.run()
    assert run.returncode == 0, run.text
    (row,) = second.table("summary.tsv").to_dict("records")
    assert (row["cached_vectors"], row["distinct_sequences"]) == ("108", "120")
    counts = json.loads(second.read("results/a/receipt.json"))["counts"]
    assert counts["computed_tokens"] <= 0.15 * counts["tokens"]
    record = json.loads(second.read("results/run.json"))
    assert record["reused"]["cached"] == 108
    (origin,) = record["reused"]["origins"]
    assert (origin["run"], [origin["pool"]]) == (made["run"], list(made["pools"]))
    assert origin["spool"] == str(first.path(".holdfast/spool"))
    assert json.loads(second.read("results/a/receipt.json"))["origins"] == [origin]
    earlier, now = (read_embeddings(some.path("results/a/embeddings.h5")) for some in (first, second))
    assert set(MEANS.values()) == earlier.matrices.keys()
    for name, values in earlier.matrices.items():
        np.testing.assert_allclose(now.matrices[name][: len(values)], values, rtol=2e-3, atol=2e-3)
