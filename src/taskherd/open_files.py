"""How many files a process may have open: connections, reports on disk and followed agents need one each."""

from __future__ import annotations

import errno
import resource
from contextlib import suppress
from typing import Final

INHERITED: Final = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
"""The soft limit with which this process was started, as this module is imported before it is raised.

Agents are given it: a program that uses select(2) breaks with numbers above 1,023, and others try to close every number
up to their limit.
"""


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one; it stays as it is if the kernel does not allow that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(OSError, ValueError):  # a hard limit above fs.nr_open, which was lowered since
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def raise_if_exhausted(error: Exception) -> None:
    """Raise an ``OSError`` again if it says that this process or machine has no file descriptor left."""
    if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
        raise error
