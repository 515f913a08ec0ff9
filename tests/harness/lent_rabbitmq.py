"""Control a private RabbitMQ that another process runs: the campaign of mutations lends one to all its tests."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final, NoReturn

from taskherd.dev import rabbitmq
from taskherd.dev.sources import Missing

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = "TEST_RABBITMQ_FOLDER"
"""The environment variable with the folder of the node that ``TASKHERD_AMQP_URL`` names."""


class LentNode(rabbitmq.RabbitNode):
    """A node that others use at the same time, and that another process starts and stops."""

    def start(self) -> NoReturn:
        """Refuse, as all that would end or halt the work of others is refused."""
        raise AssertionError("the node is lent: start a RabbitMQ of the test's own instead")

    restart = stop = kill = freeze = unfreeze = start


def attach(home: Path, folder: Path) -> LentNode:
    """Return the node that runs with its data in ``home``, to be controlled, with files of its own in ``folder``."""
    folder.mkdir()
    for name in ("node.json", ".erlang.cookie"):
        shutil.copy2(home / name, folder / name)
    binaries = rabbitmq.find()
    assert not isinstance(binaries, Missing), binaries
    return LentNode(binaries, folder)
