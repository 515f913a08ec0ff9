"""Check the broker, the exchanges and queues, permissions and queue contents."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from taskherd.broker import diagnostics as broker
from taskherd.broker.excess_rights import DEFAULT_EXCHANGE, NONEXISTENT, excess_rights
from taskherd.broker.topology import TopologyNames
from taskherd.cli.diagnostics.findings import Finding, counted, error, note, ok, problems
from taskherd.cli.diagnostics.hosts import check_hosts
from taskherd.cli.diagnostics.roles import Role
from taskherd.errors import TaskherdError
from taskherd.settings import amqp_hosts, with_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from taskherd.broker import AbstractConnection
    from taskherd.endpoints import Host
    from taskherd.settings import Settings

MIN_RABBITMQ: Final = (4, 0)


async def check_broker(settings: Settings, roles: Collection[Role] = (Role.WORKER,)) -> AsyncIterator[Finding]:
    """Check all that the roles need from the broker; a worker needs everything that the others do."""
    names = TopologyNames(settings.amqp_prefix)
    for finding in await check_hosts("broker host", amqp_hosts(settings.amqp_url), partial(_host, settings)):
        yield finding
    try:
        async with broker.connect(settings.amqp_url) as connection:
            yield _version(broker.server_version(connection))
            if Role.WORKER in roles:
                yield _command_senders(settings)
                topology = await broker.check_topology(connection, names, settings.report_partitions)
            else:
                topology = await _check_client(connection, names, roles)
            yield problems("topology", topology.missing, "complete", "run `taskherd topology apply`, or start a worker")
            advice = "delete it when it is empty and run `taskherd topology apply`, or set another TASKHERD_AMQP_PREFIX"
            yield problems("topology arguments", topology.different, "as expected", advice)
            advice = "grant them to this user on this vhost with `rabbitmqctl set_permissions`"
            yield problems("broker permissions", topology.forbidden, "sufficient", advice)
            if not topology.missing:
                yield _excess(await _excess_rights(connection, names, roles))
            queues = topology.queues
            if Role.WORKER not in roles and Role.API in roles:
                counted = (*names.report_queues(settings.report_partitions), names.commands)
                queues = tuple((await broker.queue_infos(connection, counted)).values())
            for queue in queues:
                yield _queue(queue, names)
    except TaskherdError as problem:
        yield error("broker", str(problem), "start RabbitMQ, or correct TASKHERD_AMQP_URL")


async def _host(settings: Settings, host: Host) -> str:
    """Connect to one of several hosts and return what it is."""
    async with broker.connect(with_host(settings.amqp_url, host)) as connection:
        return _version(broker.server_version(connection)).found


async def _check_client(
    connection: AbstractConnection, names: TopologyNames, roles: Collection[Role]
) -> broker.TopologyReport:
    """Check what APIs and runners use: reports of both, commands and wakeups of APIs, claims of runners."""
    is_api = Role.API in roles
    commands = (names.commands,) if is_api else ()
    claims = (names.claims,) if Role.RUNNER in roles else ()
    read = (names.wakeups,) if is_api else ()
    return await broker.check_publisher(connection, names, (*commands, *claims, names.reports), read)


async def _excess_rights(
    connection: AbstractConnection, names: TopologyNames, roles: Collection[Role]
) -> tuple[str, ...]:
    """Return rights that none of these roles needs, each as an example: what deploy/rabbitmq/users.py does not give."""
    server_named = "amq.gen-taskherd-doctor"
    configure, write, read = [NONEXISTENT], [], [NONEXISTENT]
    if Role.API not in roles:
        configure.append(server_named)
        read.append(server_named)
    if Role.WORKER not in roles:
        configure.append(f"{names.prefix}.doctor")
        write += [DEFAULT_EXCHANGE, names.work, names.events, names.wakeups, names.dead]
        read.append(names.work_queue("taskherd-doctor"))
        write += [] if Role.API in roles else [names.commands]
        write += [] if Role.API in roles or Role.RUNNER in roles else [names.claims]
    return await excess_rights(connection, configure, write, read)


def _excess(rights: tuple[str, ...]) -> Finding:
    what = "broker permissions to spare"
    if not rights:
        return ok(what, "none")
    return note(what, ", ".join(rights), "use the users that deploy/rabbitmq/users.py creates, one per process")


def _command_senders(settings: Settings) -> Finding:
    what, senders = "senders of commands", sorted(settings.trusted_command_senders)
    if senders:
        return ok(what, ", ".join(senders))
    return note(what, "whoever the broker lets write", "set TASKHERD_COMMAND_SENDERS to the API's RabbitMQ user")


def _version(version: tuple[int, ...]) -> Finding:
    found = f"RabbitMQ {'.'.join(map(str, version)) or '(unknown version)'}"
    if version < MIN_RABBITMQ:
        return error("broker", found, "install RabbitMQ 4.0 or newer")
    return ok("broker", found)


def _queue(queue: broker.QueueInfo, names: TopologyNames) -> Finding:
    what = f"queue {queue.name}"
    found = f"{counted(queue.messages, 'message')}, {counted(queue.consumers, 'consumer')}"
    if queue.name == names.dead:
        return note(what, found, "list them with `taskherd dead list`") if queue.messages else ok(what, found)
    if queue.consumers:
        return ok(what, found)
    advice = "start a worker: `taskherd worker`"
    return error(what, found, advice) if queue.messages else note(what, found, advice)
