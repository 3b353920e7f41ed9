"""The last words of a run: what they say of a table of samples. Runs that end with them are in tests/workflow."""

from pathlib import Path

import pytest
from holdfast.report.summary import SUMMARY_COLUMNS
from holdfast.run.ending import NOTHING_CALLED, say_result

DONE = {"kind": "contigs", "state": "done", "rows": 4}
CALLED = DONE | {"virus": 1, "virus_high": 1, "virus_moderate": 0, "virus_low": 0, "ambiguous": 0, "non_viral": 1}


def said(directory: Path, *rows: dict[str, object]) -> str:
    """What is said of a table with these rows."""
    lines = [SUMMARY_COLUMNS, *([str(row.get(column, "")) for column in SUMMARY_COLUMNS] for row in rows)]
    table = directory / "summary.tsv"
    table.write_text("".join("\t".join(line) + "\n" for line in lines))
    return say_result(table)


def test_contigs_with_neither_classifier_nor_labels_end_with_what_is_missing(tmp_path: Path) -> None:
    assert said(tmp_path, DONE, DONE) == f"2 samples, 8 sequences embedded; {NOTHING_CALLED}"
    assert "'classifier' in the config" in NOTHING_CALLED


@pytest.mark.parametrize(
    "rows",
    [
        [DONE | {"kind": "proteins"}],
        [DONE | {"kind": "dna"}],
        [DONE | {"label": "virus"}, DONE | {"label": "non-viral"}],
        [CALLED | {"not_called": 2}],
        [DONE | {"state": "failed", "rows": ""}],
    ],
)
def test_where_nothing_is_missing_nothing_is_said(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    assert "nothing was called" not in said(tmp_path, *rows)
