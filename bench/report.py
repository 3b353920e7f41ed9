"""What a benchmark found: lines on the terminal as they come, and a dated JSON file beside this one at the end."""

import json
import re
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Report:
    """Figures of one run.

    Attributes:
        found: Everything, by section and name.
    """

    def __init__(self, name: str, machine: dict[str, str]) -> None:
        self.found: dict[str, dict[str, object]] = {"machine": dict(machine)}
        self._name, self._began = name, time.perf_counter()
        for key, value in machine.items():
            print(f"{key:>14}  {value}", flush=True)

    def add(self, section: str, name: str, value: object, note: str = "") -> None:
        """Keep a figure and print it."""
        self.found.setdefault(section, {})[name] = value
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        print(f"[{time.perf_counter() - self._began:6.1f} s] {section:<10} {name:<52} {shown:>10} {note}", flush=True)

    def write(self, directory: Path | None = None) -> Path:
        """Write ``RESULTS/DATE-NAME-DEVICE.json``."""
        device = re.sub(r"\W+", "-", str(self.found["machine"]["device"])).strip("-")
        path = (directory or RESULTS) / f"{time.strftime('%Y-%m-%d')}-{self._name}-{device}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.found, indent=2) + "\n")
        print(path)
        return path
