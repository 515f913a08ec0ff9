"""taskherd runs and tracks fleets of AI coding agents: a worker, an API and a runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """Return the version, looked up on access: the lookup takes longer than everything else in a short command."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    try:
        return version("taskherd")
    except PackageNotFoundError:  # run from source, not installed
        return "0+source"
