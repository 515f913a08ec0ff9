"""What asyncpg encodes as an array is the same with its own check of containers and with ours."""

from __future__ import annotations

import inspect
from collections import deque
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg.protocol
import pytest

from taskherd.store import patches
from tests.harness.databases import connected
from tests.library_versions import pretended, unsupported

ID = UUID(int=7)
ARRAYS = [
    ("text[]", ["one", None, "", "{}"]),
    ("text[]", ("a", "b")),
    ("text[]", {"a": 1, "b": 2}.keys()),
    ("text[]", {1: "a"}.values()),
    ("text[]", frozenset(["a"])),
    ("uuid[]", {ID}),
    ("uuid[]", deque([ID])),
    ("bigint[]", []),
    ("bigint[]", [[1, 2], [3, 4]]),
]


@pytest.mark.parametrize("patched", [True, False])
async def test_arrays_are_encoded_as_before(database_url: str, patched: bool) -> None:  # noqa: FBT001 - a parameter
    """All builtin containers are arrays, lists in them are dimensions, and texts are elements."""
    with nullcontext() if patched else unsupported("asyncpg"):
        if patched:
            patches.install()
        async with connected(database_url) as connection:
            for kind, value in ARRAYS:
                assert await connection.fetchval(f"SELECT $1::{kind}", value) == list(value), (kind, value)
            for wrong in ("abc", {"a": 1}, 7):
                with pytest.raises(asyncpg.DataError, match="a sized iterable container expected"):
                    await connection.fetchval("SELECT $1::text[]", wrong)


def test_a_version_outside_the_range_warns() -> None:
    """The warning names the library, its version and the loss, and asyncpg's own classes stay."""
    protocol: Any = asyncpg.protocol.protocol
    with pretended("asyncpg", "0.31.0"):
        with pytest.warns(RuntimeWarning, match=f"asyncpg 0.31.0 is outside asyncpg>=.*{patches.LOSS}"):
            patches.install()
        assert not any(getattr(protocol, name) is patches.CONTAINERS for name in patches.REPLACED)


def test_the_check_of_containers_has_not_changed() -> None:
    """The library's source of it has the digest that is recorded here; compare it with ``store/patches.py`` if not."""
    source = Path(inspect.getfile(asyncpg.protocol)).parent / "codecs/array.pyx"
    (check,) = [part for part in source.read_text().split("\n\n\n") if "_is_array_iterable(object obj)" in part]
    assert sha256(check.encode()).hexdigest()[:16] == "92fe0704b85917df"
