"""URLs with several hosts: which are accepted, how they are split, and that passwords are hidden."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from taskherd.endpoints import Host
from taskherd.settings import Settings, urls


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u:p@h1:5433,h2:5434/db", [Host("h1", 5433), Host("h2", 5434)]),
        ("postgresql://u:p@h1,H2:5434/db", [Host("h1"), Host("h2", 5434)]),
        ("postgresql://h1/db?port=5433", [Host("h1", 5433)]),
        ("postgresql://u:p@/db?host=h1,h2&port=5433,5434", [Host("h1", 5433), Host("h2", 5434)]),
        ("postgresql://u:p@/db?host=h1,h2&port=5433", [Host("h1", 5433), Host("h2", 5433)]),
        ("postgresql://u:p@/db?host=h1:5433&host=h2:5434", [Host("h1", 5433), Host("h2", 5434)]),
        ("postgresql://u:p@h3/db?host=h1", [Host("h1")]),
        ("postgresql://u:p@[::1]:5433,[fe80::1%eth0]/db", [Host("::1", 5433), Host("fe80::1%eth0")]),
        ("postgresql://u:p@h1,[::1]/db", [Host("h1"), Host("::1")]),
        ("postgresql://u:p@/db?host=::1", [Host("::1")]),
        ("postgresql:///db?host=/run/postgresql", [Host("/run/postgresql")]),
        ("postgresql://u:p@%2Frun%2Fpostgresql:5433/db", [Host("/run/postgresql", 5433)]),
    ],
)
def test_a_database_url_may_name_several_hosts(url: str, hosts: list[Host]) -> None:
    """Hosts and ports are those that libpq or SQLAlchemy would take from the URL."""
    assert urls.check_database(url) == url
    assert list(urls.database_hosts(url)) == hosts
    for host in hosts:
        assert urls.database_hosts(urls.with_host(url, host)) == (host,)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("amqp://u:p@h1:5673,h2/vhost", [Host("h1", 5673), Host("h2", 5672)]),
        ("amqps://h1,[::1]:5673/", [Host("h1", 5671), Host("::1", 5673)]),
        ("amqp://u:a,b@h1", [Host("h1", 5672)]),
    ],
)
def test_a_broker_url_may_name_several_hosts(url: str, hosts: list[Host]) -> None:
    """Hosts are separated by commas, each with a port or the default of the scheme."""
    assert urls.check_amqp(url) == url
    assert list(urls.amqp_hosts(url)) == hosts
    assert [urls.amqp_hosts(urls.with_host(url, host)) for host in hosts] == [(host,) for host in hosts]


@pytest.mark.parametrize(
    ("hosts", "problem"),
    [
        ("h1,,h2", "a host is missing"),
        ("h1,", "a host is missing"),
        (":5432", "a host is missing"),
        ("h1:x", "a port is not a number"),
        ("h1:0", "a port is out of range"),
        ("h1,h2:65536", "a port is out of range"),
        ("[::1", "an IPv6 address needs brackets"),
        ("[::1]x", "an IPv6 address needs brackets"),
        (",".join("h" * 17), "there are 17 hosts, more than 16"),
    ],
)
def test_malformed_hosts_are_rejected_in_words(hosts: str, problem: str) -> None:
    """The error says what is wrong, in URLs of both kinds, and shows no password."""
    for check, url in (
        (urls.check_database, f"postgresql://u:s3cr3t@{hosts}/db"),
        (urls.check_amqp, f"amqp://u:s3cr3t@{hosts}/"),
    ):
        with pytest.raises(ValueError, match=re.escape(problem)) as raised:
            check(url)
        assert "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("host=h1,h2&port=1,2,3", "there are 3 ports for 2 hosts"),
        ("target_session_attrs=standby", "target_session_attrs is 'standby' (possible: read-write, primary, any)"),
        ("sslmode=on", "sslmode is 'on' (possible: disable, allow,"),
    ],
)
def test_options_that_cannot_work_are_rejected_at_start(query: str, problem: str) -> None:
    """What asyncpg would refuse at each attempt to connect, or what leads to servers without writes, is an error."""
    with pytest.raises(ValueError, match=re.escape(problem)):
        urls.check_database(f"postgresql://u:p@h1/db?{query}")


def test_reads_are_served_from_one_standby() -> None:
    """Its URL may say that it is one. Of several, one could show an older state after the other's newer one."""
    for target in ("standby", "read-only", "any"):
        url = f"postgresql://u:p@standby/db?target_session_attrs={target}"
        assert Settings(database_read_url=url).database_read_url == url
        assert urls.database_target(url) == target
    for url, problem in (
        ("postgresql://u:p@s1,s2/db", "there are several hosts: reads are served from one standby"),
        ("postgresql://u:p@s1/db?host=s1,s2", "there are several hosts"),
        ("postgresql://u:p@s1/db?target_session_attrs=primary", "(possible: standby, read-only, any)"),
        ("postgresql://u:p@s1", "there is no database name"),
    ):
        with pytest.raises(ValidationError, match=re.escape(problem)):
            Settings(database_read_url=url)


def test_of_several_hosts_a_writable_one_is_wanted() -> None:
    """For one host the default is libpq's; an explicit choice is kept."""
    assert urls.database_target("postgresql://h1/db") is None
    assert urls.database_target("postgresql://h1,h2/db") == "read-write"
    assert urls.database_target("postgresql://h1,h2/db?target_session_attrs=primary") == "primary"
    assert urls.database_target("postgresql://h1/db?target_session_attrs=read-write") == "read-write"


def test_passwords_are_hidden_in_urls_with_several_hosts() -> None:
    """Neither the hosts nor commas in a password confuse what is hidden."""
    url = "postgresql://alice:s3,cr%40t@h1:5432,h2:5432/db?sslmode=require"
    assert urls.without_password(url) == f"postgresql://alice:{urls.HIDDEN}@h1:5432,h2:5432/db?sslmode=require"
    assert urls.password(url) == "s3,cr@t"
    settings = Settings(database_url=url, amqp_url="amqp://bob:s3,cr%3At@h1,h2/")
    assert set(settings.secrets) == {"s3,cr@t", "s3,cr:t"}
    assert "s3," not in repr(settings)


def test_an_installation_is_the_same_whatever_the_order_of_its_hosts() -> None:
    """The digest that processes compare does not depend on the order of hosts, and for one host is as before."""
    one, other = (Settings(amqp_url=f"amqp://u:p@{hosts}/") for hosts in ("mq1,mq2:5673", "mq2:5673,MQ1:5672"))
    assert one.installation == other.installation
    assert (
        urls.broker_address("amqp://u:p@localhost/v")
        == urls.broker_address("amqp://[::1]:5672/v")
        == "127.0.0.1:5672/v"
    )


@pytest.mark.parametrize("secret", ["s3cret/rest", "12345678/rest", "5432x#rest", "s3cret?rest"])
@pytest.mark.parametrize("scheme", ["postgresql", "amqp"])
def test_a_password_that_is_not_encoded_is_not_shown(scheme: str, secret: str) -> None:
    """A password with a character that ends the hosts looks like a port; the error does not quote it."""
    check = urls.check_amqp if scheme == "amqp" else urls.check_database
    with pytest.raises(ValueError, match="percent-encoded") as raised:
        check(f"{scheme}://user:{secret}@h1/db")
    assert re.split("[/#?]", secret)[0] not in str(raised.value)


@pytest.mark.parametrize("host", ["%2Frun%2Frabbitmq.sock", "h1,%2Frun%2Frabbitmq.sock"])
def test_rabbitmq_has_no_unix_sockets(host: str) -> None:
    """A path as a host of RabbitMQ is an error, instead of a connection that is never tried."""
    with pytest.raises(ValueError, match="Unix socket"):
        urls.check_amqp(f"amqp://u:p@{host}/")


@pytest.mark.parametrize("host", ["h1..example", "h" * 64, f"{'h' * 64}.example,h2"])
def test_a_name_that_dns_cannot_have_is_refused(host: str) -> None:
    """A host whose name no resolver accepts is an error of the URL."""
    with pytest.raises(ValueError, match="is no host name"):
        urls.check_amqp(f"amqp://u:p@{host}/")
    with pytest.raises(ValueError, match="is no host name"):
        urls.check_database(f"postgresql://u:p@{host}/db")
