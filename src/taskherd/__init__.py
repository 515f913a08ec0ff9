"""taskherd keeps the truth about every AI agent task: a worker, an API and a runner."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as _version

try:
    __version__ = _version("taskherd")
except PackageNotFoundError:  # run from its source, without being installed
    __version__ = "0+source"
