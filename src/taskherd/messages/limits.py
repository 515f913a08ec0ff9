"""The bounds of the contract: how long what may be, in bytes or characters as each name says."""

from __future__ import annotations

from typing import Final

BODY_BYTES: Final = 1024 * 1024
"""The largest body that is read; of a larger one the dead letter keeps the first ``TRUNCATED_BYTES``."""

TRUNCATED_BYTES: Final = 64 * 1024
MESSAGE_BYTES: Final = 512 * 1024
"""The largest message that is published, unless one element alone is larger."""

ELEMENTS: Final = 1000
"""The most reports in one body, and the most entries in one ``task.log``."""

INPUT_BYTES: Final = 256 * 1024
CONTENT_BYTES: Final = 64 * 1024
TEXT_CHARACTERS: Final = 2000
URL_CHARACTERS: Final = 2048
NAME_CHARACTERS: Final = 64
MAX_BUILD: Final = 2**31 - 1
MAX_SEQ: Final = 2**53 - 1
