"""The pages of docs/ build without a warning: every link and every include leads somewhere; so do those to the code."""

import re
import subprocess
import sys
from pathlib import Path

from tests.test_house import ORDER, PACKAGE

REPOSITORY = Path(__file__).parents[2]
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()


def section(heading: str) -> str:
    """What CONTRIBUTING says below a heading."""
    return CONTRIBUTING.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(heading: str) -> list[tuple[str, str]]:
    """The two cells of each row of the table below a heading."""
    return re.findall(r"^\| (.*?) \| (.*?) \|$", section(heading), re.MULTILINE)[2:]


def source(name: str) -> str:
    """A file by its path in the package, or in the repository."""
    return (REPOSITORY / name if name.startswith("workflow/") else PACKAGE / name).read_text()


def test_the_pages_build(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", REPOSITORY / "docs", tmp_path / "html"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    toctree = (REPOSITORY / "docs/index.md").read_text()
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    assert {page for page in pages if f"\n{page}\n" not in toctree} == set()


def test_the_folders_of_the_page_stand_in_the_order_of_imports() -> None:
    folders = [set(re.findall(r"`(\w+)(?:/|\.py)`", cell)) for cell, _ in rows("Where things are")]
    assert folders == list(ORDER)


def test_what_to_change_stands_where_the_page_says() -> None:
    table = rows("You want to change …")
    assert len(table) == 28
    for _, cell in table:
        places = re.findall(r"`([\w/]+\.(?:py|yaml))`: ((?:`\w+`(?:, )?)+)", cell)
        assert places, cell
        for name, words in places:
            for word in re.findall(r"\w+", words):
                assert re.search(rf"^ *(def |class |){word}\b", source(name), re.MULTILINE), f"{word} in {name}"


def test_a_record_goes_through_files_that_are_there() -> None:
    text = section("The way of a record")
    assert len(re.findall(r"^\d+\. ", text, re.MULTILINE)) == 10
    words = re.findall(r"`([\w/.]+)`", text)
    files = [source(word) for word in words if word.endswith(".py")]
    files += [path.read_text() for path in (*PACKAGE.glob("sequences/*.py"), *REPOSITORY.glob("workflow/rules/*.smk"))]
    names = {word.rpartition(".")[2] for word in words if not word.endswith((".py", "/"))}
    assert {
        name for name in names if not any(re.search(rf"(def|class|rule) {name}\b", file) for file in files)
    } == set()
