"""The report of a real run, in a real browser, without a network."""

import html
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from holdfast.results.calibration import load_calibration
from holdfast.spool.job import Receipt
from selenium.common.exceptions import NoSuchElementException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import browser
from tests.browser.browser import Browser
from tests.report.test_report import write_classifier, write_sample, write_sheet, written_report
from tests.workflow.conftest import NewProject, Project, closed_sequence, fasta, stop_free_sequence

HOSTILE = "</script><img/src=x/onerror=alert(1)>"
LONG = "soil_from_a_very_long_transect_in_the_north_of_somewhere_plot_17_replicate_2"
WAIT_S = 120
FIGURES: dict[str, list[str]] = {
    "Tables": ["failures.tsv", "summary.tsv"],
    "All on one page": ["report.html"],
    "Calls": ["lengths.svg", "scores.svg", "outcomes.svg"],
    "Classifier": ["calibration.svg", "confusion.svg", "training.svg"],
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
        assert {Path(name).name for name in archive.namelist()} == {
            "report.html",
            "summary.tsv",
            "failures.tsv",
            *names,
        }
    if browser.MISSING:
        pytest.skip(f"the report was made, but not looked at: {browser.MISSING}")
    downloads = tmp_path / "browser"
    with browser.start(downloads, 1280) as chromium:
        look_at_page(chromium, some, downloads)
        look_at_snakemakes_report(chromium, some)


def look_at_page(chromium: Browser, some: Project, downloads: Path) -> None:
    """Figures answer the mouse; tables are searched, filtered, sorted and saved; hostile names are text."""
    open_page(chromium, some.path("results/report.html"))
    names = {f"{name}.svg" for name in chromium.run("return Object.keys(figures)")}
    empty = chromium.driver.find_element(By.ID, "calibration")
    assert re.search(r"No calibration: \d virus and \d non-viral contigs with evidence are too few", empty.text)
    assert names == {name for entry in FIGURES.values() for name in entry if name.endswith(".svg")} - {
        "calibration.svg"
    }
    check_layout(chromium)
    warning = chromium.driver.find_element(By.CLASS_NAME, "warning")
    assert "dnabert_s and esm2 have seeded random weights" in warning.text
    assert warning.value_of_css_property("color") == "rgba(192, 0, 0, 1)"
    answer = chromium.driver.find_element(By.CLASS_NAME, "answer").text
    assert re.match(
        r"\d of 7 contigs called virus \(\d high, \d moderate, \d low\), \d ambiguous, \d not called", answer
    )
    box = chromium.driver.find_element(By.TAG_NAME, "dl").text
    for text in (
        "snakemake -s",
        "labelled samples: virus (virus), non-viral (non-viral)",
        "weights",
        "fp32",
        "virus_score",
    ):
        assert text in box

    assert column(chromium, "samples", 0) == ["virus", "non-viral", LONG, "closed", "proteins"]
    click_heading(chromium, "samples", "records")
    assert column(chromium, "samples", 0)[-1] == "closed"
    table = some.table(f"{LONG}/contigs.tsv")
    assert count(chromium) == "1 to 7 of 7"
    assert set(column(chromium, "contigs", 1)) == {*table["contig"], "closed"}
    click_heading(chromium, "contigs", "score")
    called = table[table["decision"] != "not called"].assign(score=lambda rows: rows["score"].astype(float))
    highest = called.sort_values("score", ascending=False, kind="stable")["score"].round(4).tolist()
    assert [float(cell) for cell in column(chromium, "contigs", 7)[: len(highest)]] == highest
    assert HOSTILE in column(chromium, "contigs", 1)
    assert chromium.run("return document.images.length") == 0
    search = chromium.driver.find_element(By.ID, "search")
    search.send_keys("SOIL_2")
    assert column(chromium, "contigs", 1) == ["soil_2"]
    search.clear()
    search.send_keys("nowhere")
    assert count(chromium) == "nothing found"
    search.clear()
    tier = table.loc[table["decision"] != "not called", "tier"].iloc[0]
    chromium.driver.find_element(By.CSS_SELECTOR, f"#tier option[value='{tier}']").click()
    assert sorted(column(chromium, "contigs", 1)) == sorted(table.loc[table["tier"] == tier, "contig"])
    chromium.driver.find_element(By.CSS_SELECTOR, "#tier option[value='']").click()
    search.send_keys(LONG[:20])
    chromium.driver.find_element(By.CSS_SELECTOR, "#decision option[value='not called']").click()
    assert (column(chromium, "contigs", 1), count(chromium)) == (["no"], "1 to 1 of 1")
    chromium.driver.find_element(By.ID, "save").click()
    saved = downloads / "contigs.tsv"
    WebDriverWait(chromium.driver, WAIT_S).until(lambda _: saved.exists())
    header, line = (text.split("\t") for text in saved.read_text().splitlines())
    row = dict(zip(header, line, strict=True))
    assert (row["sample"], row["contig"], row["length_bp"], row["decision"]) == (LONG, "no", "500", "not called")
    assert (row["evidence"], row["tier"], row["score"]) == ("0", "NA", "NA")
    assert chromium.complaints() == []


def open_page(chromium: Browser, page: Path) -> None:
    """Open a report, and wait until Vega has drawn its figures."""
    chromium.open(page)
    drawn = "return document.querySelectorAll('.chart svg').length === Object.keys(figures).length"
    until(chromium, lambda: chromium.run(drawn))


def check_layout(chromium: Browser) -> None:
    """Nothing is wider than the window or cut off, figures fill their cards, and the mouse has the full name shown."""
    assert chromium.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    cards = chromium.run("""return [...document.querySelectorAll('figure:not(.empty)')].map(f => {
        const last = f.querySelector('figcaption').getBoundingClientRect();
        return [f.id, f.querySelectorAll('svg path').length, f.querySelector('.chart').scrollWidth
                - f.querySelector('.chart').clientWidth, last.left, last.width, f.getBoundingClientRect().width] })""")
    assert cards
    for name, marks, hidden, left, width, whole in cards:
        assert marks > 3, name
        assert hidden <= 1, name
        assert left + width > whole / 2, name
    bar = chromium.driver.find_element(By.CSS_SELECTOR, "[data-figure=outcomes] .mark-rect path")
    chromium.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", bar)
    ActionChains(chromium.driver).move_to_element(bar).perform()
    tip = wait(chromium, By.CSS_SELECTOR, "#vg-tooltip-element.visible", 1)[0]
    assert chromium.run("return samples.rows.map(row => row[0])")[0] in tip.text.replace("\n", "")
    assert "records" in tip.text
    cut = "return [...document.querySelectorAll('#vg-tooltip-element td')].some(td => td.scrollWidth > td.clientWidth)"
    assert not chromium.run(cut)
    assert "\u2026" not in tip.text


def check_failed(chromium: Browser, names: list[str]) -> None:
    """Samples that failed stand in red above all else, at most twenty by name, and in the table of samples."""
    red = "rgba(192, 0, 0, 1)"
    boxes = [box for box in chromium.driver.find_elements(By.CLASS_NAME, "warning") if "failed" in box.text]
    assert [len(box.find_elements(By.XPATH, "./preceding::*[@class='warning' or self::dl]")) for box in boxes] == [
        0 for _ in names[:1]
    ]
    for box in boxes:
        assert box.value_of_css_property("color") == red
        assert f"{len(names)} of " in box.text
        assert [entry.text for entry in box.find_elements(By.TAG_NAME, "b")] == names[:20]
    rows = chromium.driver.find_elements(By.CSS_SELECTOR, "#samples tr.bad td.name")
    assert [cell.text.replace("\n", "") for cell in rows] == names
    assert {cell.value_of_css_property("color") for cell in rows} <= {red}


def click_heading(chromium: Browser, section: str, name: str) -> None:
    """Sort a table by the column of this name."""
    chromium.driver.find_element(By.XPATH, f"//section[@id='{section}']//th[text()='{name}']").click()


@pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING)
@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("samples", [1, 30, 300])
def test_the_page_fits_the_window_with_any_number_of_samples(tmp_path: Path, samples: int, width: int) -> None:
    names = [f"sample_{number:03d}_".ljust(60, "x") for number in range(samples)]
    records = [(f"NODE_{number}_".ljust(60, "y"), 500 + 137 * number, "ok") for number in range(20)]
    chance = np.random.default_rng(8)
    rows = [
        (number, chunk + 1, frame, 1 - p, p)
        for number in range(19)
        for chunk in range(1 + number // 6)
        for frame, p in enumerate(chance.beta(0.6, 0.6, 2).round(3).tolist())
    ]
    results = tmp_path / "results"
    write_classifier(results)
    calibration = load_calibration(results / "classifier" / "calibration.json")
    write_sample(results / names[0], "contigs", records, rows, called=True, calibration=calibration)
    for name in names[1:]:
        (results / name).mkdir()
        for file in ("embeddings.h5", "contigs.tsv", "receipt.json"):
            os.link(results / names[0] / file, results / name / file)
    for name in names[1::11]:
        (results / name / "receipt.json").unlink()
        Receipt("j", name, "failed", f"{name}.fna, line 3: no letter").write(results / name / "receipt.json")
    write_sheet(tmp_path, [(name, "contigs", "") for name in names])
    _, size_bytes = written_report(tmp_path, results)
    assert size_bytes < 15_000_000
    with browser.start(tmp_path / "browser", width) as chromium:
        open_page(chromium, results / "report.html")
        assert column(chromium, "samples", 0) == names
        check_layout(chromium)
        wider = "return [...document.querySelectorAll('.scroll')].map(box => box.scrollWidth - box.clientWidth)"
        assert chromium.run(wider) == [0, 0]
        check_failed(chromium, names[1::11])
        chromium.driver.set_window_size(width, 3000)
        assert chromium.driver.save_screenshot(tmp_path / "report.png")


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


def column(chromium: Browser, section: str, number: int) -> list[str]:
    """Cells of a table, such as it shows them."""
    found: list[str] = chromium.run(
        "return [...document.querySelectorAll(arguments[0])].map(row => row.cells[arguments[1]].textContent)",
        f"#{section} tbody tr",
        number,
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
    assert "1 samples, 1 sequences embedded" in page
    assert "Fewer than three sequences are embedded" in page
    assert '<section id="contigs" hidden>' in page
