"""The size limits of the contract, in bytes of UTF-8, characters or elements, as the names say."""

from __future__ import annotations

from typing import Final

MAX_BODY_BYTES: Final = 1024 * 1024
"""Maximum size of a body that is decoded; a larger one becomes a dead letter with its first ``TRUNCATED_BYTES``."""

TRUNCATED_BYTES: Final = 64 * 1024
"""Size to which the body of a dead letter is truncated if it exceeds ``MAX_BODY_BYTES``."""

MAX_MESSAGE_BYTES: Final = 512 * 1024
"""Maximum size of a published message with several elements; a single element may be larger."""

MAX_ELEMENTS: Final = 1000
"""Maximum number of reports in one message, and of entries in one ``task.log``."""

MAX_INPUT_BYTES: Final = 256 * 1024
"""Maximum size of a prompt or input."""

MAX_CONTENT_BYTES: Final = 64 * 1024
"""Maximum size of a log entry; longer ones are truncated."""

MAX_DATA_BYTES: Final = 16 * 1024
"""Maximum size of the data of a log entry, and of a tool's input, as canonical JSON; more is rejected."""

MAX_DATA_LEVELS: Final = 100
"""Maximum number of levels of lists and objects in such data: no stack decides whether it is valid."""

MAX_TITLE_CHARACTERS: Final = 200
"""Maximum length of the title of a log entry or a request of an agent; longer ones are truncated."""

MAX_DETAIL_BYTES: Final = 16 * 1024
"""Maximum size of the detail of a request of an agent; longer ones are truncated."""

MAX_OPTIONS: Final = 16
"""Maximum number of options of a request of an agent."""

MAX_OPTION_CHARACTERS: Final = 64
"""Maximum length of the id of an option."""

LOG_BURST: Final = 4
"""Seconds of the rate of a task's log that may come at once."""

MAX_TEXT_CHARACTERS: Final = 2000
"""Maximum length of a status message, error or detail; longer ones are truncated."""

MAX_URI_CHARACTERS: Final = 2048
"""Maximum length of a URI; longer ones are cleared."""

MAX_NAME_CHARACTERS: Final = 64
"""Maximum length of the name of a workspace, app or runner; ``domain.names`` limits the names of tasks."""

MAX_MODEL_CHARACTERS: Final = 128
"""Maximum length of the name of a model."""

MAX_TOKENS: Final = 2**53 - 1
"""Maximum number of tokens in one counter of a report: the largest integer that every JSON parser reads exactly."""

MAX_SEQ: Final = 2**53 - 1
"""Maximum seq: the largest integer that every JSON parser reads exactly."""
