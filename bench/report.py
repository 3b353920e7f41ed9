"""What a benchmark found: lines on the terminal and a dated JSON file, both as the figures come."""

import json
import re
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


class Report:
    """Figures of one run.

    Attributes:
        found: Everything, by section and name.
        path: The JSON file.
    """

    def __init__(self, name: str, machine: dict[str, str], directory: Path | None = None) -> None:
        """Begin a report; it goes to ``DIRECTORY/DATE-NAME-DEVICE.json``, :data:`RESULTS` by default."""
        device = re.sub(r"\W+", "-", machine["device"]).strip("-")
        self.path = (directory or RESULTS) / f"{time.strftime('%Y-%m-%d')}-{name}-{device}.json"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, dict[str, object]] = {"machine": dict(machine)}
        self._began = time.perf_counter()
        for key, value in machine.items():
            print(f"{key:>14}  {value}", flush=True)

    def add(self, section: str, name: str, value: object, note: str = "") -> None:
        """Keep a figure and print it."""
        self.found.setdefault(section, {})[name] = value
        shown = f"{value:,.4g}" if isinstance(value, float) else str(value)
        print(f"[{time.perf_counter() - self._began:6.1f} s] {section:<10} {name:<52} {shown:>10} {note}", flush=True)
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")
