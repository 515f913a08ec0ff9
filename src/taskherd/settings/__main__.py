"""Print the settings as a Markdown table for the documentation: ``python -m taskherd.settings``."""

from __future__ import annotations

import sys

from taskherd.settings.fields import Settings
from taskherd.settings.loading import describe


def table() -> str:
    """Return a Markdown table of all settings: default, accepted values and description."""
    rows = ["| variable | default | accepted values | description |", "|---|---|---|---|"]
    for each in describe(Settings.model_construct()):
        default = f"`{each.default}`" if each.default else ""
        cells = (f"`{each.variable}`", default, each.expected, each.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
