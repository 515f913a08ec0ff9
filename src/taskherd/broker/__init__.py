"""RabbitMQ: reconnecting connections, topology, consuming, publishing with confirms, dead letters."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # so that annotations elsewhere need not import aiormq and pamqp
    from aiormq.abc import AbstractChannel as AbstractChannel
    from aiormq.abc import AbstractConnection as AbstractConnection
    from pamqp.common import FieldTable as FieldTable
