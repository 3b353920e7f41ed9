"""A headless Chromium for the tests of the report; it can reach nothing beyond this machine.

Debian's packages are chromium and chromium-driver; where they are missing, a test says so and skips.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "" if CHROMIUM and DRIVER else "chromium and chromium-driver (Debian's packages) are not installed"
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"),
)


class Browser:
    """One browser with one page."""

    def __init__(self, driver: Any) -> None:
        """Take a driver over."""
        self.driver = driver

    def open(self, page: Path) -> None:
        """Open a file."""
        self.driver.get(page.as_uri())

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a piece of JavaScript in the page, or in the frame that was entered."""
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """Errors on the console, and requests for anything that is no file of this machine, since the last call."""
        found = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                url = message["params"]["request"]["url"]
                if not url.startswith(("file:", "data:", "blob:", "about:", "chrome:", "chrome-untrusted:")):
                    found.append(f"request of {url}")
        return found


@contextmanager
def start(directory: Path, width: int = 1500, height: int = 1000) -> Iterator[Browser]:
    """Start a browser that keeps its profile and what it downloads below a directory."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in (*SWITCHES, f"--user-data-dir={directory}/profile", f"--window-size={width},{height}"):
        options.add_argument(switch)
    options.add_experimental_option("prefs", {"download.default_directory": str(directory)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
