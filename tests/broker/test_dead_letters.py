from __future__ import annotations

import asyncio

import orjson
import pytest
from typer.testing import CliRunner

from taskherd.broker import dead_letters
from taskherd.broker.connection import SupervisedConnection
from taskherd.broker.publish import Publisher
from taskherd.broker.topology import TopologyNames
from taskherd.cli import dead as dead_cli
from taskherd.errors import Unavailable
from tests.broker.conftest import IntakeOn, LinkTo


@pytest.fixture
async def link(amqp_url: str, link_to: LinkTo) -> SupervisedConnection:
    """A link for looking at the dead letters."""
    return link_to(amqp_url, "dead letters")


async def test_a_letter_keeps_the_body_and_says_why(
    names: TopologyNames, publisher: Publisher, link: SupervisedConnection
) -> None:
    """A dead letter holds the bytes unchanged, and reason, detail, origin and index as headers."""
    origin = dead_letters.Origin(names.reports, names.reports, "key", {"mine": 1}, None, "reply", "corr")
    await dead_letters.publish_dead_letter(publisher, names, b"\xff\x00{", "malformed", "not JSON", origin, index=3)
    [letter] = await dead_letters.read(link, names, 10)
    assert (letter.body, letter.reason, letter.detail, letter.index) == (b"\xff\x00{", "malformed", "not JSON", 3)
    assert (letter.origin.queue, letter.origin.exchange, letter.origin.routing_key) == (*[names.reports] * 2, "key")
    assert (letter.origin.reply_to, letter.origin.correlation_id) == ("reply", "corr")
    assert letter.origin.headers["mine"] == 1
    assert await dead_letters.read(link, names, 10) == [letter]


async def test_too_much_is_cut(names: TopologyNames, publisher: Publisher, link: SupervisedConnection) -> None:
    """Of a body over 1 MiB the first 64 KiB and the length are kept, of a detail 2,000 characters, of headers none."""
    body = bytes(1024 * 1024 + 1)
    origin = dead_letters.Origin(names.reports, names.reports, "k", {"big": "x" * 120_000})
    await dead_letters.publish_dead_letter(publisher, names, body, "too_large", "ä" * 5000, origin)
    await dead_letters.publish_dead_letter(publisher, names, body[:-1], "r", "", origin)
    cut, whole = await dead_letters.read(link, names, 10)
    assert (len(cut.body), cut.length, cut.truncated) == (64 * 1024, len(body), True)
    assert len(cut.detail) == 2000
    assert cut.detail.endswith("…")
    assert "big" not in cut.origin.headers
    assert (len(whole.body), whole.truncated) == (1024 * 1024, False)


async def test_reading_never_uses_a_letter_up(
    names: TopologyNames, publisher: Publisher, link: SupervisedConnection
) -> None:
    """However often the queue is looked through, the letters stay; the broker's delivery limit must not count."""
    await dead_letters.publish_dead_letter(publisher, names, b"x", "r", "", dead_letters.Origin("q", "e", "k"))
    for _ in range(30):
        assert len(await dead_letters.read(link, names, 10)) == 1


async def test_replay_sends_a_letter_home(
    *,
    names: TopologyNames,
    publisher: Publisher,
    link: SupervisedConnection,
    amqp_url: str,
    link_to: LinkTo,
    intake_on: IntakeOn,
) -> None:
    """A replayed letter arrives where it came from as it was, and is gone; the others stay."""
    home = dead_letters.Origin(names.reports, names.reports, "key", {"mine": 1}, "text/plain", "reply", "corr")
    lost = dead_letters.Origin(names.events, names.events, "nobody")
    await dead_letters.publish_dead_letter(publisher, names, b"one", "a", "", home)
    await dead_letters.publish_dead_letter(publisher, names, b"two", "b", "", home)
    await dead_letters.publish_dead_letter(publisher, names, b"three", "a", "", lost)
    replayed = await dead_letters.replay(link, publisher, names, reason="a", limit=100)
    assert replayed.count == 1
    assert list(replayed.stayed.values()) == ["no queue takes it where it came from"]
    [got] = await intake_on(link_to(amqp_url, "consume")).batch(10, 0.2)
    assert (got.body, got.routing_key, got.headers) == (b"one", "key", {"mine": 1})
    assert (got.reply_to, got.correlation_id, got.properties.content_type) == ("reply", "corr", "text/plain")
    left = await dead_letters.read(link, names, 10)
    assert sorted(each.body for each in left) == [b"three", b"two"]


async def test_a_letter_cut_short_is_not_replayed(
    names: TopologyNames, publisher: Publisher, link: SupervisedConnection
) -> None:
    """What holds only the beginning of a message stays where it is."""
    await dead_letters.publish_dead_letter(
        publisher, names, b"begin", "r", "", dead_letters.Origin(names.reports, names.reports, "k"), length=99
    )
    replayed = await dead_letters.replay(link, publisher, names, limit=10)
    assert (replayed.count, list(replayed.stayed.values())) == (0, ["only its beginning was kept"])
    assert len(await dead_letters.read(link, names, 10)) == 1


async def test_what_the_broker_made_is_shown_and_replayed(
    names: TopologyNames, publisher: Publisher, link: SupervisedConnection
) -> None:
    """A message that the broker dead-lettered shows its reason and origin from `x-death`, and can go home too."""
    await publisher.publish(names.reports, "key", b"body", headers={"mine": 1})
    channel = await link.channel()
    message = await channel.basic_get(names.reports, timeout=5)
    await channel.basic_reject(message.delivery_tag or 0, requeue=False)
    await channel.close()
    letters: list[dead_letters.DeadLetter] = []
    while not letters:
        letters = await dead_letters.read(link, names, 10)
    [letter] = letters
    assert (letter.reason, letter.body) == ("rejected", b"body")
    assert (letter.origin.queue, letter.origin.exchange, letter.origin.routing_key) == (*[names.reports] * 2, "key")
    assert (await dead_letters.replay(link, publisher, names, [letter.id], limit=10)).count == 1
    channel = await link.channel()
    home = await channel.basic_get(names.reports, no_ack=True, timeout=5)
    assert (home.body, home.header.properties.headers) == (b"body", {"mine": 1})


async def test_purge_removes_one_or_all(names: TopologyNames, publisher: Publisher, link: SupervisedConnection) -> None:
    """Purging takes away just the letters named, or every one."""
    for n in range(3):
        await dead_letters.publish_dead_letter(publisher, names, b"%d" % n, "r", "", dead_letters.Origin("q", "e", "k"))
    letters = await dead_letters.read(link, names, 10)
    assert await dead_letters.purge(link, names, [letters[1].id], limit=10) == 1
    assert [each.body for each in await dead_letters.read(link, names, 10)] == [b"0", b"2"]
    assert await dead_letters.purge(link, names, limit=10) == 2
    assert await dead_letters.read(link, names, 10) == []


async def test_without_a_dead_queue_nothing_counts_as_buried(
    names: TopologyNames, publisher: Publisher, link: SupervisedConnection
) -> None:
    """A letter that no queue took was not buried."""
    await (await link.channel()).queue_delete(names.dead)
    with pytest.raises(Unavailable, match="no queue takes dead letters"):
        await dead_letters.publish_dead_letter(publisher, names, b"x", "r", "", dead_letters.Origin("q", "e", "k"))


async def test_the_command_lists_and_shows(
    names: TopologyNames, publisher: Publisher, amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`taskherd dead list --json` names each letter, and `show` its body, with nothing that steers a terminal."""
    monkeypatch.setenv("TASKHERD_AMQP_URL", amqp_url)
    monkeypatch.setenv("TASKHERD_AMQP_PREFIX", names.prefix)
    await dead_letters.publish_dead_letter(
        publisher, names, b"\x1b[2Jbody", "bad_json", "why", dead_letters.Origin("q", "e", "k")
    )
    [listed] = orjson.loads(await _run("list", "--json"))
    assert (listed["reason"], listed["detail"], listed["queue"]) == ("bad_json", "why", "q")
    table = await _run("list")
    assert listed["id"] in table
    shown = await _run("show", listed["id"])
    assert r"\x1b[2Jbody" in shown
    assert "\x1b[2J" not in shown + table
    assert orjson.loads(await _run("purge", "--all", "--json")) == {"purged": 1}


async def _run(*arguments: str) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, dead_cli.app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout
