"""How Sphinx builds the pages beside this file: ``make docs``."""

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = "Holdfast"
release = PROJECT["version"]
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Holdfast"
html_copy_source = False
exclude_patterns = ["_build"]
