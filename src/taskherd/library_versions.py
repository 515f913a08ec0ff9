"""Decide whether a patch applies to the installed version of its library."""

from __future__ import annotations

import re
import warnings
from functools import cache
from importlib import metadata
from typing import NamedTuple


class VersionRange(NamedTuple):
    """The versions of a library that a patch was verified with: from ``first`` up to, but not including, ``end``."""

    library: str
    first: tuple[int, ...]
    end: tuple[int, ...]

    def includes(self, version: str) -> bool:
        """Return whether ``version`` is in the range; a pre-release counts as its release."""
        return self.first <= tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < self.end

    def __str__(self) -> str:
        return f"{self.library}>={_dotted(self.first)},<{_dotted(self.end)}"


@cache
def is_supported(supported: VersionRange, loss: str) -> bool:
    """Return whether the installed library is in the range; if not, warn once, naming the ``loss``."""
    try:
        installed = metadata.version(supported.library)
    except metadata.PackageNotFoundError:
        installed = "unknown"
    if supported.includes(installed):
        return True
    warnings.warn(
        f"{supported.library} {installed} is outside {supported}, the range that taskherd's patch supports; "
        f"running the library's own code: {loss}",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
