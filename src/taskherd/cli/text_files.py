"""Read the text of a file, or of stdin."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Final

from taskherd.client.errors import ClientError, ExitCode

MAX_BYTES: Final = 64 * 1024 * 1024
"""Maximum size of a text."""


def read(path: str) -> str:
    """Return the text of a file, or of stdin if ``path`` is ``-``, without a byte order mark.

    It is UTF-8, whatever the locale says.

    Raises:
        ClientError: it is not, is larger than ``MAX_BYTES``, or cannot be read.
    """
    name = "stdin" if path == "-" else path
    try:
        data = _read(path)
        if len(data) > MAX_BYTES:
            raise ClientError(ExitCode.USAGE, f"{name} is too large", f"the limit is {MAX_BYTES:,} bytes")
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise ClientError(ExitCode.USAGE, f"cannot read {name}: {error}", "expected text in UTF-8") from None
    except OSError as error:
        raise ClientError(ExitCode.USAGE, f"cannot read {name}: {error}") from None


def _read(path: str) -> bytes:
    if path != "-":
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    if sys.stdin is None:
        raise OSError("it is closed")
    return sys.stdin.buffer.read(MAX_BYTES + 1)
