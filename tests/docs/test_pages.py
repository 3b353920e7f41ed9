"""The pages of docs/ build without a warning: every link and every include leads somewhere."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_pages_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", REPOSITORY / "docs", tmp_path / "html"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    toctree = (REPOSITORY / "docs/index.md").read_text()
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    assert {page for page in pages if f"\n{page}\n" not in toctree} == set()
