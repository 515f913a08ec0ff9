"""The example directory file, which is part of the package: ``deploy/example-directory.yaml`` of the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Final

EXAMPLE: Final = Path(__file__).with_name("example.yaml")
