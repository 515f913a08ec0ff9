"""The process of the API before it runs."""

from __future__ import annotations

from typing import Any

import pytest

from taskherd import __version__
from taskherd.api.app import ApiProcess
from taskherd.endpoints import Endpoint, Host
from taskherd.settings import Settings

URLS: dict[str, Any] = {"database_url": "postgresql://db/t", "amqp_url": "amqp://mq/", "secret_key": "s" * 32}


@pytest.mark.parametrize(("pool", "for_reads"), [(2, 1), (3, 1), (4, 2), (20, 18)])
async def test_two_of_its_database_connections_are_for_writes(pool: int, for_reads: int) -> None:
    """The others are for reads, of which there is one at least."""
    api = ApiProcess(Settings(**URLS, database_pool=pool))
    assert vars(vars(api)["_reader"])["_size"] == for_reads
    assert vars(api)["_engine"].pool.size() == 2


async def test_it_says_what_it_is() -> None:
    """Its metrics name its role, its release and its installation, which all processes of one share."""
    settings = Settings(**URLS)
    value = ApiProcess(settings).metrics.registry.get_sample_value
    assert value("taskherd_build_info", {"version": __version__}) == 1
    assert value("taskherd_process_info", {"role": "api", "installation": settings.installation}) == 1


@pytest.mark.parametrize("publish_first", [True, False])
@pytest.mark.parametrize("in_turns", [True, False])
async def test_commands_are_repeated_over_another_node(
    monkeypatch: pytest.MonkeyPatch, *, publish_first: bool, in_turns: bool
) -> None:
    """Also if the URL has one name for all nodes, whose addresses the resolver returns in turns."""
    api = ApiProcess(Settings(**{**URLS, "amqp_url": "amqp://broker.example/"}))
    addresses = ["192.0.2.1", "192.0.2.2"]

    async def resolve(_: Host) -> list[str]:
        if in_turns:
            addresses.reverse()
        return list(addresses)

    async def attempt(endpoint: Endpoint) -> str:
        return endpoint.address

    connections = [vars(vars(api)["_connections"].publish)["_endpoints"], vars(vars(api)["_repeats"])["_endpoints"]]
    begun = set()
    for endpoints in connections if publish_first else reversed(connections):
        monkeypatch.setattr(endpoints, "_resolve", resolve)
        begun.add((await endpoints.connect(attempt, (OSError,)))[0])
    assert begun == set(addresses)
