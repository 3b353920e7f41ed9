"""A project in which all is done."""

from pathlib import Path

import pytest

from tests.run.plans import CONFIG, MODELS, SAMPLES, finish, prepare


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which everything is done."""
    monkeypatch.chdir(tmp_path)
    for model, source in MODELS.items():
        prepare(f"resources/{model}", model, source, ("a" if model == "esm2" else "b") * 64)
    for sample in SAMPLES:
        Path(sample.fasta).write_text(">x\nACGT\n")
        finish(sample, CONFIG)
    return tmp_path
