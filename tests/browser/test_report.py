"""The report of a real run, in a real browser, without a network."""

import html
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import browser
from tests.browser.browser import Browser
from tests.workflow.conftest import NewProject, Project, closed_sequence, fasta, stop_free_sequence

HOSTILE = "</script><img/src=x/onerror=alert(1)>"
LONG = "soil_from_a_very_long_transect_in_the_north_of_somewhere_plot_17_replicate_2"
WAIT_S = 30
FIGURES = {
    "All on one page": ["report.html"],
    "Calls": ["lengths.svg", "scores.svg", "outcomes.svg"],
    "Classifier": ["confusion.svg", "training.svg"],
    "Embeddings": ["frames.svg", "embeddings.svg"],
    "Pool": ["load.svg", "throughput.svg"],
}


def write_samples(some: Project) -> None:
    """Two labelled samples, one to be called with a long name and a hostile record, one without a frame, proteins."""
    for seed, name in enumerate(("virus", "non-viral", LONG)):
        records = {f"{name[:4]}_{number}": stop_free_sequence(600, 10 * seed + number) for number in range(4)}
        some.write(
            f"data/{name}.fna", fasta({**records, HOSTILE: stop_free_sequence(500, seed), "no": closed_sequence(500)})
        )
    some.write("data/closed.fna", fasta({"closed": closed_sequence(700)}))
    some.write("data/proteins.faa", fasta({"p": "MKLV", "q": "MAGIC"}))
    sheet = [(name, f"data/{name}.fna", "contigs", name) for name in ("virus", "non-viral")]
    sheet += [(name, f"data/{name}.fna", "contigs", "") for name in (LONG, "closed")]
    some.write_sheet(*sheet, ("proteins", "data/proteins.faa", "proteins", ""))


def test_the_report_is_whole_and_drawn_in_a_browser_without_a_network(project: NewProject, tmp_path: Path) -> None:
    some = project()
    write_samples(some)
    run = some.run()
    assert run.returncode == 0, run.text
    assert "draw" in run.jobs
    names = [name for entry in FIGURES.values() for name in entry if name.endswith(".svg")]
    assert sorted(path.name for path in some.path("results/figures").iterdir()) == sorted(names)
    for form in ("report.html", "report.zip"):
        made = some.run("--report", form)
        assert made.returncode == 0, made.text
    with zipfile.ZipFile(some.path("report.zip")) as archive:
        assert {Path(name).name for name in archive.namelist()} == {"report.html", *names}
    if browser.MISSING:
        pytest.skip(f"the report was made, but not looked at: {browser.MISSING}")
    downloads = tmp_path / "browser"
    with browser.start(downloads) as chromium:
        look_at_page(chromium, some, downloads)
        look_at_snakemakes_report(chromium, some)
        chromium.driver.set_window_size(1500, 3000)
        chromium.open(some.path("results/report.html"))
        assert chromium.driver.save_screenshot(tmp_path / "report.png")


def look_at_page(chromium: Browser, some: Project, downloads: Path) -> None:
    """Figures have marks, the table is searched, sorted and saved, and hostile names are text."""
    chromium.open(some.path("results/report.html"))
    drawn = chromium.run(
        "return [...document.querySelectorAll('figure')].map(f => [f.id, f.querySelectorAll('svg path').length])"
    )
    assert {f"{name}.svg" for name, marks in drawn if marks > 3} == {
        name for entry in FIGURES.values() for name in entry
    } - {"report.html"}
    overflow = """return [...document.querySelectorAll('figure svg text')].map(
        t => [t.textContent, t.getBoundingClientRect(), t.ownerSVGElement.getBoundingClientRect()])"""
    for text, place, figure in chromium.run(overflow):
        assert figure["left"] - 1 <= place["left"], text
        assert place["right"] <= figure["right"] + 1, text
    warning = chromium.driver.find_element(By.CLASS_NAME, "warning")
    assert "dnabert_s and esm2 have seeded random weights" in warning.text
    assert warning.value_of_css_property("color") == "rgba(192, 0, 0, 1)"

    table = some.table(f"{LONG}/contigs.tsv")
    assert count(chromium) == "1 to 7 of 7"
    highest = table[table["status"] == "called"].assign(score=lambda rows: rows["score"].astype(float))
    expected = highest.sort_values("score", ascending=False, kind="stable")["contig"].tolist()
    assert column(chromium, 1)[:5] == expected
    assert HOSTILE in expected
    assert chromium.run("return document.images.length") == 0
    search = chromium.driver.find_element(By.ID, "search")
    search.send_keys("SOIL_2")
    assert column(chromium, 1) == ["soil_2"]
    search.clear()
    search.send_keys("nowhere")
    assert count(chromium) == "nothing found"
    search.clear()
    search.send_keys(LONG[:20])
    chromium.driver.find_element(By.CSS_SELECTOR, "#outcome option[value='not called']").click()
    assert (column(chromium, 1), count(chromium)) == (["no"], "1 to 1 of 1")
    chromium.driver.find_element(By.ID, "save").click()
    saved = downloads / "contigs.tsv"
    WebDriverWait(chromium.driver, WAIT_S).until(lambda _: saved.exists())
    header, line = saved.read_text().splitlines()
    assert header.split("\t") == ["sample", "contig", "length_bp", "chunks", "evidence", "decision", "score"]
    assert line.split("\t") == [LONG, "no", "500", "1", "0", "no_stop_free_frame", "NA"]
    assert chromium.complaints() == []


def look_at_snakemakes_report(chromium: Browser, some: Project) -> None:
    """Every category is listed, figures and captions are in it, and it asks for nothing from outside."""
    chromium.open(some.path("report.html"))
    for category in FIGURES:
        wait(chromium, By.XPATH, f"//span[text()='{category}']", 1)
    rendered = html.unescape(re.sub(r"<[^>]+>|\\n", " ", some.read("report.html")))
    assert "A score is no probability that the contig is a virus." in " ".join(rendered.split())
    assert rendered.count("data:image/svg+xml") >= sum(map(len, FIGURES.values())) - 1
    assert chromium.complaints() == []


def until(chromium: Browser, condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    WebDriverWait(chromium.driver, WAIT_S, ignored_exceptions=[NoSuchElementException]).until(lambda _: condition())


def wait(chromium: Browser, by: str, what: str, number: int) -> list[WebElement]:
    """So many elements, once they are there."""
    until(chromium, lambda: len(chromium.driver.find_elements(by, what)) == number)
    found: list[WebElement] = chromium.driver.find_elements(by, what)
    return found


def column(chromium: Browser, number: int) -> list[str]:
    """Cells of the table of contigs."""
    found: list[str] = chromium.run(
        "return [...document.querySelectorAll('#rows tr')].map(r => r.cells[arguments[0]].textContent)", number
    )
    return found


def count(chromium: Browser) -> str:
    """What the table says of its rows."""
    return chromium.driver.find_element(By.ID, "count").text


def test_a_run_without_calls_has_a_report_of_its_own(project: NewProject) -> None:
    some = project()
    some.configure(models={"esm2": some.models["esm2"]})
    some.write("data/p.faa", ">p\nMKLV\n")
    some.write_sheet(("only", "data/p.faa", "proteins"))
    run = some.run()
    assert run.returncode == 0, run.text
    assert sorted(path.stem for path in some.path("results/figures").iterdir()) == [
        "embeddings",
        "load",
        "outcomes",
        "throughput",
    ]
    page = some.read("results/report.html")
    assert "1 samples, 1 records." in page
    assert "Fewer than three sequences are embedded" in page
    assert "<section hidden>" in page
