"""Pretend that another version of a patched library is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import aiormq.connection
import asyncpg.protocol.protocol
import pytest
from pamqp import decode
from pamqp.header import ContentHeader

from taskherd import library_versions
from taskherd.broker.connection import SupervisedConnection
from taskherd.store import patches

UNSUPPORTED = {"aiormq": "7.3.0", "asyncpg": "0.33.0", "pamqp": "4.1.0"}
"""For each patched library, the first version beyond the range of its patches."""

_FRAME_RECEIVER = aiormq.connection.FrameReceiver
_UNMARSHAL = ContentHeader.unmarshal
_SHORT_STRING = decode.METHODS["shortstr"]
_CONTAINERS = {name: getattr(asyncpg.protocol.protocol, name) for name in patches.REPLACED}
"""The libraries' own parts: this module is imported before any test installs a patch."""


@contextmanager
def pretended(library: str, version: str) -> Iterator[None]:
    """Run with ``version`` as the installed version of ``library``, and with all libraries as they were installed."""
    actual = metadata.version
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", lambda name: version if name == library else actual(name))
        patch.setattr(aiormq.connection, "FrameReceiver", _FRAME_RECEIVER)
        patch.setattr(ContentHeader, "unmarshal", _UNMARSHAL)
        for name, own in _CONTAINERS.items():
            patch.setattr(asyncpg.protocol.protocol, name, own)
        patch.setitem(decode.METHODS, "shortstr", _SHORT_STRING)
        library_versions.is_supported.cache_clear()
        yield
    library_versions.is_supported.cache_clear()


@contextmanager
def unsupported(library: str) -> Iterator[None]:
    """Run with a version of ``library`` beyond the range of its patches, after the warning about it."""
    with pretended(library, UNSUPPORTED[library]):
        with pytest.warns(RuntimeWarning, match=f"{library} {UNSUPPORTED[library]} is outside {library}>="):
            _install()
        yield


def _install() -> None:
    SupervisedConnection("amqp://unused", "installs the patches")
    patches.install()
