"""``taskherd topology``: declare the exchanges and queues."""

from __future__ import annotations

import asyncio

import typer

from taskherd.broker import topology
from taskherd.broker.connection import SupervisedConnection
from taskherd.settings import Settings, load

app = typer.Typer(help="Declare the exchanges and queues in RabbitMQ.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep ``apply`` a subcommand: typer runs a single command without its name."""


@app.command()
def apply() -> None:
    """Declare all exchanges and shared queues at TASKHERD_AMQP_URL. Running it again changes nothing."""
    settings = load("amqp_url")
    names = topology.TopologyNames(settings.amqp_prefix)
    asyncio.run(_apply(settings, names))
    queues = dict.fromkeys((*names.queues, *names.report_queues(settings.report_partitions)))
    typer.echo(f"exchanges: {', '.join(names.exchanges)}")
    typer.echo(f"queues: {', '.join(queues)}")


async def _apply(settings: Settings, names: topology.TopologyNames) -> None:
    connection = SupervisedConnection(settings.amqp_url, "topology")
    connection.start()
    try:
        await topology.declare(await connection.channel(), names, settings.report_partitions)
    finally:
        await connection.close()
