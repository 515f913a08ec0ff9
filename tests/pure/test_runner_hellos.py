"""Which hellos of runners are refused, without a database."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from taskherd.messages.claims import RunnerHello
from taskherd.store.runners import WorkTargets
from taskherd.worker import work_queues
from tests.harness.histories import NOON

hello_refusal = partial(work_queues.hello_refusal, now=NOON)
MAX_RUNNERS, MAX_RUNNERS_OF_SENDER, MAX_POOLS = 1_000, 500, 100
NAME_KEPT_FOR = timedelta(minutes=5)
NO_TARGETS = WorkTargets(frozenset(), {}, {})


def said_hello(count: int, pool: str = "linux") -> dict[str, str]:
    """Return this many runners that said hello, all of one pool."""
    return {f"runner-{number}": pool for number in range(count)}


def test_pools_and_runners_have_different_names() -> None:
    """A runner is refused if a pool has its name or a runner that of its pool: both name a queue."""
    targets = WorkTargets(frozenset({"gpu"}), {"listed-1": "arm"}, {"hello-1": "linux"})
    for pool in ("gpu", "arm", "linux"):
        assert "is the name of a pool" in (hello_refusal(targets, RunnerHello(pool, "windows")) or "")
    for runner in ("listed-1", "hello-1"):
        assert "is the name of a runner" in (hello_refusal(targets, RunnerHello("another", runner)) or "")
    assert "is the name of a pool" in (hello_refusal(NO_TARGETS, RunnerHello("same", "same")) or "")
    assert hello_refusal(targets, RunnerHello("another", "gpu")) is None


def test_a_listed_runner_belongs_to_the_pool_of_the_directory() -> None:
    """A hello with another pool is refused, one with the pool of the directory is not."""
    targets = WorkTargets(frozenset(), {"listed-2": "arm"}, {})
    assert "belongs to pool arm, not linux" in (hello_refusal(targets, RunnerHello("listed-2", "linux")) or "")
    assert hello_refusal(targets, RunnerHello("listed-2", "arm")) is None


def test_new_runners_are_refused_from_the_maximum_on() -> None:
    """As many runners as allowed may say hello; known ones and listed ones always may."""
    almost = WorkTargets(frozenset(), {}, said_hello(MAX_RUNNERS - 1))
    assert hello_refusal(almost, RunnerHello("one-more", "linux")) is None
    full = WorkTargets(frozenset(), {"listed-3": "linux"}, said_hello(MAX_RUNNERS))
    assert "said hello already" in (hello_refusal(full, RunnerHello("one-more", "linux")) or "")
    assert hello_refusal(full, RunnerHello("runner-0", "linux")) is None
    assert hello_refusal(full, RunnerHello("listed-3", "linux")) is None


def test_new_pools_are_refused_from_the_maximum_on() -> None:
    """Only pools that nothing but hellos name count, and only a further one of those is refused."""
    pools = {f"runner-{number}": f"pool-{number}" for number in range(MAX_POOLS)}
    almost = WorkTargets(frozenset({"pool-0"}), {}, pools)
    assert hello_refusal(almost, RunnerHello("one-more", "one-more-pool")) is None
    also_listed = WorkTargets(frozenset(), {"listed-4": "pool-1"}, pools)
    assert hello_refusal(also_listed, RunnerHello("one-more", "one-more-pool")) is None
    full = WorkTargets(frozenset({"of-a-template"}), {}, pools)
    assert "that no template names" in (hello_refusal(full, RunnerHello("one-more", "one-more-pool")) or "")
    assert hello_refusal(full, RunnerHello("one-more", "of-a-template")) is None
    assert hello_refusal(full, RunnerHello("one-more", "pool-99")) is None


def test_a_runner_keeps_its_name_from_other_pools_while_it_is_there_and_a_while_longer() -> None:
    """Those of its own pool may have it, for one of them took its place; and the directory decides before that."""
    stolen = RunnerHello("hello-1", "linux")
    for age, is_refused in ((0 * NAME_KEPT_FOR, True), (NAME_KEPT_FOR * 0.99, True), (NAME_KEPT_FOR, False)):
        targets = WorkTargets(frozenset(), {}, {"hello-1": "gpu"}, {"hello-1": NOON - age})
        assert bool(hello_refusal(targets, stolen)) == is_refused
        assert hello_refusal(targets, RunnerHello("hello-1", "gpu")) is None
        assert "of pool gpu is there, or was within 5 minutes" in (
            hello_refusal(targets, stolen, in_use={"hello-1"}) or ""
        )
        listed = WorkTargets(frozenset(), {"hello-1": "linux"}, targets.said_hello, targets.heard_at)
        assert hello_refusal(listed, stolen, in_use={"hello-1"}) is None


def test_a_sender_has_a_share_of_the_names() -> None:
    """Only new runners in its own pools count; known and listed ones always may, and a sender of all pools."""
    full = WorkTargets(frozenset(), {"listed-5": "linux"}, said_hello(MAX_RUNNERS_OF_SENDER))
    refused_to = partial(hello_refusal, full, sender_pools=frozenset({"linux"}))
    assert "of this sender" in (refused_to(RunnerHello("one-more", "linux")) or "")
    assert refused_to(RunnerHello("runner-0", "linux")) is None
    assert refused_to(RunnerHello("listed-5", "linux")) is None
    assert hello_refusal(full, RunnerHello("one-more", "linux")) is None
    assert hello_refusal(full, RunnerHello("one-more", "gpu"), sender_pools=frozenset({"gpu"})) is None
    almost = WorkTargets(frozenset(), {}, said_hello(MAX_RUNNERS_OF_SENDER - 1))
    assert hello_refusal(almost, RunnerHello("one-more", "linux"), sender_pools=frozenset({"linux"})) is None
