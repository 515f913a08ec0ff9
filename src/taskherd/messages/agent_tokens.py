"""The token of an agent: the task and build it speaks for, signed; it is derived anew whenever needed, never stored."""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable

_SHAPE = re.compile(r"([0-9a-f]{32})\.([1-9][0-9]{0,9})\.([A-Za-z0-9_-]{43})", re.ASCII)


def agent_token(key: str, task_id: UUID, build_number: int) -> str:
    """``<task id, 32 hex digits>.<build number>.<HMAC-SHA256, 43 characters of base64url>``, the same at every call."""
    said = f"{task_id.hex}.{build_number}"
    mac = hmac.digest(key.encode(), b"taskherd agent " + said.encode(), hashlib.sha256)
    return f"{said}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def verify_agent_token(keys: Iterable[str], token: str) -> tuple[UUID, int] | None:
    """The task and build that a token speaks for; None when it was made with none of ``keys``."""
    shape = _SHAPE.fullmatch(token)
    if shape is None:
        return None
    task_id, build_number = UUID(hex=shape[1]), int(shape[2])
    good = [hmac.compare_digest(token, agent_token(key, task_id, build_number)) for key in keys]
    return (task_id, build_number) if any(good) else None
