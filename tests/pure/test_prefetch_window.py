"""How many deliveries a consumer may have, by their size."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from taskherd.broker.delivery import MAX_BODY_BYTES, POISON_FROM, Delivery
from taskherd.broker.patches.pamqp_patches import DELIVERY_COUNT
from taskherd.broker.prefetch_window import CLEAN_ACKS, PrefetchWindow, Step

MAX_BYTES = 8 * MAX_BODY_BYTES
OF_ANY_SIZE = 4


class _Message(Delivery):
    """A delivery of ``size`` bytes, without any, whose delivery has failed ``failures`` times."""

    def __init__(self, tag: int, size: int, failures: int = 0, *, redelivered: bool | None = None) -> None:
        super().__init__(b"", tag, redelivered=failures > 0 if redelivered is None else redelivered)
        self.size = size
        self.properties = Basic.Properties(headers={DELIVERY_COUNT: failures})

    exchange = routing_key = ""
    properties = Basic.Properties()  # of the class too, since the property is abstract
    may_have_trace = False


def _fill(window: PrefetchWindow, tags: count[int], size: int) -> list[Delivery]:
    """Deliver messages of ``size`` bytes until the consumer has as many as it may have, and return them."""
    admitted: list[Delivery] = []
    while not window.full:
        admitted.append(_Message(next(tags), size))
        assert window.admit(admitted[-1])
    return admitted


def _tags(deliveries: list[Delivery]) -> list[int]:
    return [delivery.delivery_tag for delivery in deliveries]


def test_a_window_widens_while_messages_are_small() -> None:
    """It begins with one, then has as many as fit at any size, then its maximum, less what is still unacknowledged."""
    window, tags = PrefetchWindow(1000, MAX_BYTES), count(1)
    assert (window.size, window.next_step()) == (1, Step.NOTHING)
    _fill(window, tags, 100)
    assert window.next_step() is Step.WIDEN
    window.widen()
    assert (window.size, window.full, window.next_step()) == (OF_ANY_SIZE, False, Step.NOTHING)
    _fill(window, tags, 100)
    assert window.next_step() is Step.WIDEN
    window.widen()
    assert window.size == 1000 - 1 - OF_ANY_SIZE
    _fill(window, tags, 100)
    assert window.next_step() is Step.NOTHING


def test_a_consumer_has_what_it_may_have_whatever_those_before_it_had() -> None:
    """Acks of the deliveries to an earlier one make room for bytes, but the broker sends this one no more for them."""
    window, tags = PrefetchWindow(1000, MAX_BYTES), count(1)
    window.resume()
    first = _fill(window, tags, 100)
    window.widen()
    second = _fill(window, tags, 100)
    assert _tags(second) == [2, 3, 4, 5]
    window.settle(first)
    assert (window.full, window.next_step()) == (True, Step.WIDEN)
    window.settle(second[:1])
    assert (window.full, window.next_step()) == (False, Step.NOTHING)
    assert _tags(_fill(window, tags, 100)) == [6]
    window.widen()
    assert window.size == 1000 - OF_ANY_SIZE


def test_a_consumer_may_begin_before_anything_was_delivered() -> None:
    """The first delivery of a channel has the tag 1."""
    window = PrefetchWindow(1000, MAX_BYTES)
    window.resume()
    first = _Message(1, 100)
    assert window.admit(first)
    assert window.full
    window.settle([first])
    assert not window.full


@pytest.mark.parametrize(("last", "exhausted"), [(1, False), (2, True)])
def test_to_wait_is_in_vain_once_a_full_consumer_has_a_quarter_of_the_bytes(last: int, *, exhausted: bool) -> None:
    """A wider one may bring few more by then; with fewer bytes, or while it is not full, more come soon."""
    window = PrefetchWindow(1000, MAX_BYTES)
    window.size = 2
    assert window.admit(_Message(1, MAX_BYTES // 4 - 2))
    assert not window.exhausted
    assert window.admit(_Message(2, last))
    assert (window.full, window.exhausted) == (True, exhausted)


def test_to_wait_is_not_in_vain_while_a_consumer_is_not_full() -> None:
    """However many bytes it has."""
    window = PrefetchWindow(1000, MAX_BYTES)
    window.size = 2
    assert window.admit(_Message(1, MAX_BYTES))
    assert (window.full, window.exhausted) == (False, False)


@pytest.mark.parametrize(
    ("size", "max_deliveries", "step"),
    [(1, 2, Step.NOTHING), (1, 3, Step.WIDEN), (4, 11, Step.NOTHING), (4, 12, Step.WIDEN)],
)
def test_a_window_widens_to_at_least_twice_its_size(size: int, max_deliveries: int, step: Step) -> None:
    """A new consumer for fewer would cost more than it brings."""
    window = PrefetchWindow(max_deliveries, MAX_BYTES)
    window.size = size
    _fill(window, count(1), 100)
    assert window.next_step() is step


@pytest.mark.parametrize(("size", "fitting"), [(0, 50), (1, 50), (2, 25), (3, 16)])
def test_a_window_widens_to_what_fits_into_half_of_the_bytes(size: int, fitting: int) -> None:
    """By the average size of what is held, also if that is all headers."""
    window = PrefetchWindow(1000, 100)
    _fill(window, count(1), size)
    assert window.next_step() is Step.WIDEN
    window.widen()
    assert window.size == fitting


def test_the_average_size_is_that_of_all_that_are_held() -> None:
    """Of large ones few more fit, of which small ones among them are a part."""
    window = PrefetchWindow(1000, MAX_BYTES)
    window.size = OF_ANY_SIZE
    for tag, size in enumerate((100_000, 100_000, 200_000, 400_000), start=1):
        assert window.admit(_Message(tag, size))
    assert window.next_step() is Step.WIDEN
    window.widen()
    assert window.size == MAX_BYTES // 2 // 200_000


def test_a_window_stays_small_while_messages_are_large() -> None:
    """Nothing is refused then: what fits at any size fits."""
    window, tags = PrefetchWindow(1000, MAX_BYTES), count(1)
    window.settle(_fill(window, tags, MAX_BODY_BYTES))
    for _ in range(3):
        admitted = _fill(window, tags, MAX_BODY_BYTES)
        if window.next_step() is Step.WIDEN:
            window.widen()
        window.settle(admitted)
    assert (window.size, window.stopped) == (OF_ANY_SIZE, False)


def test_what_does_not_fit_is_refused_until_there_is_room() -> None:
    """It is canceled, consumes again when half of the bytes are free, and then with as many as fit by their size."""
    window, tags = PrefetchWindow(1000, MAX_BYTES), count(1)
    window.size = 900
    size = MAX_BODY_BYTES // 2
    messages: list[Delivery] = [_Message(next(tags), size) for _ in range(30)]
    admitted = [message for message in messages if window.admit(message)]
    assert _tags(admitted) == [*range(1, 17)]
    assert window.full
    assert not window.admit(_Message(next(tags), 1)), "smaller ones come after those before them"
    assert window.next_step() is Step.STOP
    assert window.stop() == [*range(17, 32)]
    assert (window.stopped, window.next_step()) == (True, Step.NOTHING)
    window.settle(admitted[:7])
    assert window.next_step() is Step.NOTHING
    window.settle(admitted[:8])  # seven of them again
    assert window.next_step() is Step.RESUME
    window.resume()
    assert window.size == 8
    assert _tags(_fill(window, tags, size)) == [*range(32, 40)]


def test_what_comes_after_a_refused_message_is_refused_too() -> None:
    """Even if it is small enough, so that the order stays; and until then nothing else is delivered."""
    window = PrefetchWindow(1000, MAX_BYTES)
    window.size = 900
    admitted = [_Message(1, 100), _Message(2, MAX_BYTES - 200)]
    assert [window.admit(each) for each in admitted] == [True, True]
    assert not window.full
    assert [window.admit(_Message(3, 101)), window.full] == [False, True]
    assert not window.admit(_Message(4, 1))
    window.settle(admitted)
    assert (window.full, window.next_step()) == (True, Step.STOP)
    assert window.stop() == [3, 4]


@pytest.mark.parametrize(("size", "more"), [(4, True), (3, False)])
def test_more_may_be_refused_until_the_consumer_has_all_it_may(size: int, *, more: bool) -> None:
    """What is acknowledged meanwhile lets others come."""
    window = PrefetchWindow(1000, MAX_BYTES)
    window.size = size
    first = _Message(1, MAX_BYTES)
    assert [window.admit(each) for each in [first, _Message(2, 1), _Message(3, 1)]] == [True, False, False]
    seen = [window.refusing_more]
    window.settle([first])
    seen.append(window.refusing_more)
    window.stop()
    assert [*seen, window.refusing_more] == [more, True, False]


def test_a_consumer_after_refused_messages_gets_as_many_as_fit_by_their_size() -> None:
    """By the size of those that were refused last, not of those before; each time anew."""
    window, tags, size = PrefetchWindow(1000, MAX_BYTES), count(1), MAX_BODY_BYTES // 8
    for _ in range(2):
        window.size = 900
        small: list[Delivery] = [_Message(next(tags), 1)]
        small += [_Message(next(tags), MAX_BYTES - size)]
        assert [window.admit(each) for each in small] == [True, True]
        assert not window.admit(_Message(next(tags), size))
        window.stop()
        assert window.size == MAX_BYTES // 2 // size
        window.settle(small)
        window.resume()


def test_one_message_always_fits() -> None:
    """Even if it is larger than everything may be, for example because the queues are many."""
    window = PrefetchWindow(1000, 100)
    large = _Message(1, 101)
    assert window.admit(large)
    assert not window.admit(_Message(2, 1))
    assert window.stop() == [2]
    assert (window.size, window.next_step()) == (1, Step.NOTHING)
    window.settle([large])
    assert window.next_step() is Step.RESUME


def test_without_a_limit_of_bytes_the_prefetch_is_constant() -> None:
    """And nothing is refused."""
    window = PrefetchWindow(10)
    assert window.size == 10
    for tag in range(1, 11):
        assert window.admit(_Message(tag, 100 * MAX_BODY_BYTES))
        assert (window.full, window.exhausted, window.next_step()) == (False, False, Step.NOTHING)


def test_possible_poison_comes_alone() -> None:
    """While it is the first, nothing else is delivered; it widens again after enough other messages."""
    window, tags = PrefetchWindow(1000, MAX_BYTES), count(1)
    poison = _Message(next(tags), 100, POISON_FROM)
    assert window.admit(poison)
    assert (window.full, window.exhausted, window.next_step()) == (True, True, Step.NOTHING)
    window.settle([poison])
    for _ in range(CLEAN_ACKS):
        clean = _fill(window, tags, 100)
        assert (window.exhausted, window.next_step()) == (True, Step.NOTHING)
        window.settle(clean)
    _fill(window, tags, 100)
    assert (window.exhausted, window.next_step()) == (False, Step.WIDEN)


def test_possible_poison_among_others_stops_the_consumer() -> None:
    """All that were delivered with it are processed first, then there is one at a time."""
    window, tags = PrefetchWindow(1000, MAX_BYTES), count(1)
    window.settle(_fill(window, tags, 100))
    window.widen()
    messages = [_Message(next(tags), 100), _Message(next(tags), 100, POISON_FROM), _Message(next(tags), 1)]
    assert [window.admit(message) for message in messages] == [True, True, True]
    assert window.next_step() is Step.STOP
    assert window.stop() == []
    assert window.size == 1
    window.settle(messages[:2])
    assert window.next_step() is Step.NOTHING
    window.settle(messages[2:])
    assert window.next_step() is Step.RESUME
    window.resume()
    assert window.size == 1


@pytest.mark.parametrize("size", [2, 30])
def test_a_consumer_of_several_is_stopped_as_long_as_one_clean_ack_is_missing(size: int) -> None:
    """Although others are acknowledged before it can be stopped."""
    window, tags = PrefetchWindow(1000, MAX_BYTES), count(1)
    window.size = size
    poison = _Message(next(tags), 100, POISON_FROM)
    assert window.admit(poison)
    window.settle([poison])
    for _ in range(CLEAN_ACKS):
        assert (window.full, window.next_step()) == (True, Step.STOP)
        other = _Message(next(tags), 100)
        assert window.admit(other)
        window.settle([other])
    assert (window.full, window.next_step()) == (False, Step.NOTHING)


def test_fewer_failures_are_no_poison() -> None:
    """A message that was redelivered, as after a lost connection, changes nothing."""
    window = PrefetchWindow(1000, MAX_BYTES)
    assert window.admit(_Message(1, 100, POISON_FROM - 1))
    assert window.next_step() is Step.WIDEN


def test_a_message_that_is_delivered_for_the_first_time_is_no_poison() -> None:
    """Its producer may have written the header that says otherwise."""
    window = PrefetchWindow(1000, MAX_BYTES)
    assert window.admit(_Message(1, 100, POISON_FROM, redelivered=False))
    assert (window.exhausted, window.next_step()) == (False, Step.WIDEN)


class _Queue:
    """A queue of messages of these sizes, and its consumer with a window."""

    def __init__(self, window: PrefetchWindow, sizes: list[int]) -> None:
        self._window = window
        self._waiting = [*enumerate(sizes)]
        self._tags = count(1)
        self._refused: list[tuple[int, _Message]] = []
        self._of_consumer: set[int] = set()
        self.held: list[tuple[int, _Message]] = []
        self.consumed: list[int] = []

    def deliver(self) -> None:
        """Deliver all that the prefetch allows."""
        while self._waiting and not self._window.stopped and len(self._of_consumer) < self._window.size:
            index, size = self._waiting.pop(0)
            message = _Message(next(self._tags), size)
            self._of_consumer.add(message.delivery_tag)
            (self.held if self._window.admit(message) else self._refused).append((index, message))

    def ack(self, number: int) -> None:
        """Acknowledge the first ``number`` messages that are held, one of them twice."""
        acked, self.held = self.held[:number], self.held[number:]
        messages: list[Delivery] = [message for _, message in acked]
        self._window.settle([*messages, *messages[:1]])
        self._of_consumer.difference_update(_tags(messages))
        self.consumed += [index for index, _ in acked]

    def adjust(self) -> None:
        """Do what the window says."""
        match self._window.next_step():
            case Step.STOP:
                assert self._window.stop() == [message.delivery_tag for _, message in self._refused]
                self._waiting[:0] = [(index, message.size) for index, message in self._refused]
                self._refused.clear()
            case Step.RESUME:
                self._window.resume()
                self._of_consumer.clear()
            case Step.WIDEN:
                assert len(self._of_consumer) >= self._window.size, "something may be in flight"
                self._window.widen()
                self._of_consumer.clear()
            case Step.NOTHING:
                pass


@pytest.mark.parametrize("max_bytes", [100, MAX_BYTES])
@given(
    st.lists(st.one_of(st.integers(1, 2000), st.integers(1, MAX_BODY_BYTES)), max_size=200),
    st.lists(st.integers(0, 50), min_size=1, max_size=10),
)
def test_any_messages_are_consumed_within_the_bytes(max_bytes: int, sizes: list[int], acks: list[int]) -> None:
    """Whatever follows whatever, all are consumed in order, and those held fit, or are a single one."""
    window = PrefetchWindow(50, max_bytes)
    queue = _Queue(window, sizes)
    for number in range(5 * len(sizes) + 10):
        queue.deliver()
        queue.adjust()
        assert len(queue.held) <= 50
        assert len(queue.held) <= 1 or sum(message.size for _, message in queue.held) <= max_bytes
        queue.ack(max(acks[number % len(acks)], 1))
    assert queue.consumed == [*range(len(sizes))]
