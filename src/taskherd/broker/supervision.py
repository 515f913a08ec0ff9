"""Keep a background loop running after an error: if it ended unnoticed, the process would consume no more."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog

from taskherd.errors import Misconfigured, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = structlog.get_logger(__name__)


@contextmanager
def survive(name: str, on_error: Callable[[str], None]) -> Iterator[None]:
    """End the block at any error, and raise none: the loop around it waits, and tries again.

    ``on_error`` is called with the reason of an expected one; an unexpected one is logged, with its traceback and the
    ``name`` of what has failed.
    """
    try:
        yield
    except (Unavailable, Misconfigured) as error:
        on_error(str(error))
    except Exception:
        log.exception("unexpected error, trying again", failed=name)
