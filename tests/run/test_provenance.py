"""The record of a run: what can be said without one. Real runs are in tests/workflow/test_provenance.py."""

import re
from pathlib import Path

import pytest
from holdfast.run.provenance import begin_record, finish_record


def test_a_record_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begin_record(tmp_path, Path("results"), {}, {}, [], {})
    (tmp_path / "results").mkdir()
    finish_record(tmp_path, ended=True)
    assert list((tmp_path / "results").iterdir()) == []
    (tmp_path / "results/summary.tsv").write_text("sample\n")
    (tmp_path / "results/runs").write_text("in the way")
    finish_record(tmp_path, ended=True)
    assert re.fullmatch(
        r"holdfast: error: the record of this run cannot be written: .*runs.*\n", capsys.readouterr().err
    )
    finish_record(tmp_path / "nowhere", ended=False)
    assert capsys.readouterr().err == ""
