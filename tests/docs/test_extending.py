"""The family of docs/extending.md is one file, one entry and a test, and then works like any other.

Both files go where the page says, into a copy of the package, and what is run is run there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/extending.md").read_text()
LARGEST_FILE_LINES = 120
TIMEOUT_S = 600
PROTEINS = {"short": "MKV", "longer": "MKVLAATWGRQNDESHIYPFCU", "beyond": "ACDEFGHIKLMNPQRSTVWY" * 2}
PUBLISH = """
import torch, transformers
torch.manual_seed(1)
config = transformers.ElectraConfig(
    vocab_size=30, embedding_size=32, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=34,
)
model = transformers.ElectraModel(config).eval()
for parameter in model.parameters():
    if parameter.dim() > 1:
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
model.save_pretrained("published")
vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"YWVTSRQPNMLKIHGFEDCAXUZOB"]
open("published/vocab.txt", "w").write("\\n".join(vocabulary))
ids = [[2, *(vocabulary.index(letter) for letter in text.replace("U", "X")), 3] for text in ("%s", "%s")]
with torch.inference_mode():
    states = [model(torch.tensor([row])).last_hidden_state[0, 1:-1] for row in ids]
torch.save(states, "states.pt")
"""


def run(command: list[str | Path], directory: Path) -> str:
    """Run a command in the copy, whose package it imports; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(directory / "workflow/scripts"), "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the family added as the page says."""
    root = tmp_path_factory.mktemp("extending")
    shutil.copytree(REPOSITORY / "workflow", root / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "examples/new_family", root / "examples/new_family")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (root / "tests/models").mkdir(parents=True)
    for source, target in re.findall(r"^cp (\S+) (\S+)$", PAGE, re.MULTILINE):
        shutil.copy(root / source, root / target)
    (entry,) = re.findall(r"^FAMILIES = .*$", PAGE, re.MULTILINE)
    registry = root / "workflow/scripts/holdfast/models/registry.py"
    text, count = re.subn(r"(?m)^FAMILIES = .*$", entry, registry.read_text())
    assert count == 1
    assert entry.startswith(
        re.findall(r"(?m)^FAMILIES = .*(?=\})", (REPOSITORY / registry.relative_to(root)).read_text())[0]
    )
    registry.write_text(text)
    return root


def test_the_family_is_one_file_of_the_length_that_the_page_says() -> None:
    lines = len((REPOSITORY / "examples/new_family/electra.py").read_text().splitlines())
    assert lines <= LARGEST_FILE_LINES
    assert f"Its file has {lines} lines" in " ".join(PAGE.split())


def test_the_file_and_its_test_are_as_clean_as_ours(checkout: Path) -> None:
    files: list[str | Path] = ["workflow/scripts/holdfast/models/electra.py", "tests/models/test_electra.py"]
    run([sys.executable, "-m", "ruff", "check", *files], checkout)
    run([sys.executable, "-m", "ruff", "format", "--check", *files], checkout)


def test_the_test_of_the_family_passes(checkout: Path) -> None:
    printed = run([sys.executable, "-m", "pytest", "-q", "tests/models/test_electra.py"], checkout)
    assert "2 passed" in printed


def test_a_file_is_embedded_with_the_family_whole_and_in_windows(checkout: Path) -> None:
    """By hand, through a pool: vectors of residues as transformers gives them, and what is too long in windows."""
    run([sys.executable, "-c", PUBLISH % (PROTEINS["short"], PROTEINS["longer"])], checkout)
    (checkout / "proteins.faa").write_text("".join(f">{name}\n{text}\n" for name, text in PROTEINS.items()))
    entry = checkout / "workflow/scripts/entry.py"
    run([sys.executable, entry, "prepare", "published", "--output", "prepared"], checkout)
    asked = ["--model", "prepared", "--pooling", "mean,residues", "--output", "found.h5"]
    run([sys.executable, entry, "embed", "proteins.faa", *asked], checkout)
    with h5py.File(checkout / "found.h5") as file:
        names = h5py.check_enum_dtype(file["records/status"].dtype)
        statuses = [next(name for name, code in names.items() if code == found) for found in file["records/status"][:]]
        assert statuses == ["ok", "ok", "windowed"]
        offsets, residues, means = (file[f"model/2/{name}"][:] for name in ("offsets", "residues", "mean"))
    assert np.diff(offsets).tolist() == [len(text) for text in PROTEINS.values()]
    import torch

    for row, theirs in enumerate(torch.load(checkout / "states.pt", weights_only=True)):
        allowed = 1e-5 * max(1.0, float(theirs.abs().max()))
        assert np.abs(residues[offsets[row] : offsets[row + 1]] - theirs.numpy()).max() <= allowed
        assert np.abs(means[row] - theirs.mean(0).numpy()).max() <= allowed
