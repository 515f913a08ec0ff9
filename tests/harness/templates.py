"""The templates that are shipped in ``deploy/templates``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TEMPLATES = Path(__file__).parents[2] / "deploy" / "templates"
EXAMPLE = TEMPLATES.parent / "example-directory.yaml"


def shipped_run(name: str) -> dict[str, Any]:
    """Return the ``run`` of a shipped template."""
    directory = yaml.safe_load((TEMPLATES / name).read_text())
    run: dict[str, Any] = directory["templates"][0]["versions"][0]["run"]
    return run
