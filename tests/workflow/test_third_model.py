"""The worked example of docs/extending.md: ESM-1b beside the others, through its patch, against transformers' own."""

import subprocess
from pathlib import Path

import h5py
import numpy as np
import torch
from holdfast.sequences import Alphabet
from holdfast.sequences.fasta import read_records
from holdfast.sequences.tokens import tokenize_proteins
from transformers import EsmConfig, EsmForMaskedLM, EsmModel

from .conftest import DEMO, REPOSITORY, NewProject

LONGEST_AA = 1022
CONFIG = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "vocab_size": 33,
    "pad_token_id": 1,
    "mask_token_id": 32,
    "max_position_embeddings": 1026,
    "position_embedding_type": "absolute",
    "emb_layer_norm_before": True,
    "token_dropout": True,
    "layer_norm_eps": 1e-5,
}


def write_checkpoint(directory: Path) -> None:
    """ESM-1b as transformers writes it, with synthetic weights."""
    torch.manual_seed(5)
    network = EsmForMaskedLM(EsmConfig.from_dict(CONFIG))
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    network.save_pretrained(directory)


def test_a_third_model_goes_the_way_of_the_others(project: NewProject, checkout: Path) -> None:
    subprocess.run(["git", "apply", REPOSITORY / "examples/third_model/esm1b.patch"], cwd=checkout, check=True)
    extended = project(repository=checkout)
    write_checkpoint(extended.directory / "esm1b")
    records = [*read_records(DEMO / "data/phage_proteins.faa", Alphabet.PROTEIN)][:6]
    proteins = {record.id: record.sequence for record in records} | {"long": "MKVLAARG" * 150}
    extended.write("data/p.faa", "".join(f">{name}\n{sequence}\n" for name, sequence in proteins.items()))
    extended.write_sheet(("p", "data/p.faa", "proteins_esm1b"))
    extended.configure(models={"esm1b": {"weights": "esm1b"}}, store_dtype="float32")
    run = extended.run()
    assert run.returncode == 0, run.text
    assert "prepare_weights esm1b" in run.jobs
    with h5py.File(extended.directory / "results/p/embeddings.h5") as file:
        assert [*file["ids"].asstr()] == list(proteins)
        rows = file["esm1b"][:]
    network = EsmModel.from_pretrained(extended.directory / "esm1b", add_pooling_layer=False).eval()
    with torch.inference_mode():
        for row, sequence in zip(rows, proteins.values(), strict=True):
            tokens, _ = tokenize_proteins([sequence[:LONGEST_AA]])
            states = network(torch.from_numpy(tokens.astype(np.int64))[None]).last_hidden_state[0]
            np.testing.assert_allclose(row, states[1:-1].mean(0), atol=1e-5)
