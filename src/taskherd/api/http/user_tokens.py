"""A user's token: `id-secret`, made here, never kept; what is kept is the id and the secret's SHA-256.

A plain hash is enough for a secret that is random over more than 128 bits: there is nothing to guess.
"""

from __future__ import annotations

import re
import secrets
import string
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

ID_LENGTH: Final = 10
SECRET_LENGTH: Final = 32
"""Of 62 characters each: 190 bits."""
_LETTERS: Final = string.ascii_letters + string.digits
_SHAPE: Final = re.compile(r"([0-9A-Za-z]{10})-([0-9A-Za-z]{22,64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ParsedToken:
    """A token as somebody presents it, its secret hashed already."""

    id: str
    secret_hash: bytes = field(repr=False)


def generate() -> tuple[str, ParsedToken]:
    """A new token: the text to hand out once, and what is to be kept of it."""
    token_id = "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(_LETTERS) for _ in range(SECRET_LENGTH))
    return f"{token_id}-{secret}", ParsedToken(token_id, sha256(secret.encode()).digest())


def parse(token: str) -> ParsedToken | None:
    """What a text presents, None if it can't be a token."""
    shape = _SHAPE.fullmatch(token)
    return None if shape is None else ParsedToken(shape[1], sha256(shape[2].encode()).digest())
