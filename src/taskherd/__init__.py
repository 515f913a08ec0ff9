"""taskherd keeps the truth about every AI agent task: a worker, an API and a runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """The version, looked up when it is asked for: that takes longer than all else of a short command."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("taskherd")
    except PackageNotFoundError:  # run from its source, without being installed
        return "0+source"
