"""``taskherd topology``: declare the exchanges and queues."""

from __future__ import annotations

import asyncio

import typer

from taskherd.broker import topology
from taskherd.broker.connection import open_connection
from taskherd.cli.output import OutputFormat, OutputOption, document
from taskherd.cli.tables import fields
from taskherd.settings import Settings, load
from taskherd.store import runners
from taskherd.store.engine import dispose, open_engine, transaction

app = typer.Typer(help="Declare the exchanges and queues in RabbitMQ.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Keep ``apply`` a subcommand: typer runs a single command without its name."""


@app.command()
def apply(output: OutputOption = OutputFormat.TABLE) -> None:
    """Declare all exchanges and shared queues at TASKHERD_AMQP_URL. Running it again changes nothing.

    With TASKHERD_DATABASE_URL, also the work queues of all pools and runners of the directory.
    """
    settings = load("amqp_url")
    names = topology.TopologyNames(settings.amqp_prefix)
    targets = asyncio.run(_apply(settings, names))
    shared = (*names.queues, *names.report_queues(settings.report_partitions))
    queues = list(dict.fromkeys((*shared, *map(names.work_queue, targets))))
    if output is OutputFormat.JSON:
        document({"exchanges": list(names.exchanges), "queues": queues})
    else:
        fields(("exchanges", "\n".join(names.exchanges)), ("queues", "\n".join(queues)))


async def _work_targets(database_url: str) -> list[str]:
    """Return all pools and runners that the database knows."""
    engine = open_engine(database_url, size=1, application_name="taskherd-topology")
    try:
        async with transaction(engine) as connection:
            known = await runners.targets(connection)
        return sorted(known.pools | known.runners)
    finally:
        await dispose(engine)


async def _apply(settings: Settings, names: topology.TopologyNames) -> list[str]:
    """Declare everything and return the pools and runners with a queue; without a database there are none."""
    targets = await _work_targets(settings.database_url) if settings.database_url else []
    async with open_connection(settings.amqp_url, "topology") as connection:
        partitions = settings.report_partitions
        async with connection.temporary_channels(topology.channels_for(partitions)) as (channel, *others):
            await topology.declare(channel, names, partitions, others)
        for target in targets:
            async with connection.temporary_channel() as channel:
                await topology.declare_work_queue(channel, names, target)
    return targets
