"""The search terms, the sort and the cursor of a list of tasks, before anything is looked up."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from uuid import UUID

import orjson
import pytest

from taskherd.api.http import query_parameters
from taskherd.api.http.errors import HTTPError
from taskherd.api.tasks import search
from taskherd.store.task_lists import Between, Listed
from taskherd.store.task_queries import TaskFilter

ALICE = UUID(int=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)


def read(**query: str) -> search.ListQuery:
    """Return the parameters of a list."""
    return query_parameters.validate(search.ListQuery, query)


def validations(error: HTTPError) -> list[dict[str, str]]:
    """Return what an error says of each field."""
    found: list[dict[str, str]] = orjson.loads(error.response.body)["validations"]
    return found


@pytest.mark.parametrize(
    "time", [EPOCH, EPOCH + MICROSECOND, datetime(2026, 11, 27, 10, 0, 0, 1, UTC), datetime.max.replace(tzinfo=UTC)]
)
@pytest.mark.parametrize("task_id", [UUID(int=0), UUID(int=2**128 - 1)])
def test_a_cursor_names_the_last_entry_exactly(time: datetime, task_id: UUID) -> None:
    """To the microsecond, from the beginning of time until its end."""
    text = search.cursor(time, task_id)
    assert read(after=text).after == (time, task_id)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "A" * 31,
        "A" * 33,
        "A" * 31 + "=",
        "A" * 31 + "ä",
        search.cursor(EPOCH - MICROSECOND, ALICE),
        "B" + "A" * 31,
        urlsafe_b64encode((253_402_300_800_000_000).to_bytes(8, "big") + ALICE.bytes).decode(),  # the year 10,000
    ],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """A text of another form, and a time before or after those that there are."""
    with pytest.raises(HTTPError) as raised:
        read(after=text)
    expected = "Expected the value of `next` in the previous response."
    assert validations(raised.value) == [{"field": "after", "detail": expected}]


@pytest.mark.parametrize(
    ("query", "paged"),
    [
        ({}, False),
        ({"q": "owner:me", "sort": "changed"}, False),
        ({"sort": ""}, False),
        ({"limit": "7"}, True),
        ({"after": ""}, True),
    ],
)
def test_a_list_has_pages_if_it_is_asked_for_one(query: dict[str, str], *, paged: bool) -> None:
    """An empty cursor asks for the first one; without any limit a page has as many tasks as it may."""
    found = read(**query)
    assert (found.paged, found.after, found.limit) == (paged, None, int(query.get("limit", search.MAX_LIMIT)))
    assert found.sort == query.get("sort", "")


@pytest.mark.parametrize("limit", [1, 500])
def test_a_page_has_one_to_500_tasks(limit: int) -> None:
    """A page has as many as are asked for, and no other number can be asked for."""
    assert read(limit=str(limit)).limit == limit


@pytest.mark.parametrize("limit", [0, 501])
def test_a_page_of_another_size_is_refused(limit: int) -> None:
    """A limit outside of the bounds is an error, not another limit."""
    with pytest.raises(HTTPError) as raised:
        read(limit=str(limit))
    assert validations(raised.value) == [{"field": "limit", "detail": "Expected a whole number from 1 to 500."}]


def test_terms_select_by_what_an_index_has() -> None:
    """Each term has its column; "unhealthy" is every health but none and a good one, and a label or a runner a term."""
    assert search.listed({}) == Listed()
    terms = {"template": "claude", "pool": "gpu", "status": "paused", "state": "idle", "health": "lost"}
    flags = {"waiting": "true", "stalled": "false", "failed": "true"}
    assert search.listed(terms | flags | {"label": "repo=acme/app"}) == Listed(
        template="claude", pool="gpu", status="paused", state="idle", health=("lost",),
        waiting=True, stalled=False, failed=True, term="label:repo=acme/app",
    )  # fmt: skip
    assert search.listed({"runner": "rack-1"}) == Listed(term="runner:rack-1")
    unhealthy = search.listed({"health": "unhealthy"}).health
    assert "lost" in unhealthy
    assert not {"healthy", "none", "unhealthy"} & set(unhealthy)


@pytest.mark.parametrize(
    ("term", "value"),
    [
        ("status", "sleeping"), ("state", "failure"), ("health", "ill"), ("waiting", "1"), ("stalled", "yes"),
        ("failed", "no"), ("template", "a\0b"), ("pool", "x" * 257), ("runner", "\n"), ("label", "repo"),
        ("label", "=x"), ("label", "repo="), ("label", "a\0=b"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(term: str, value: str) -> None:
    """Also a state that is shown as another one."""
    with pytest.raises(HTTPError) as raised:
        search.listed({term: value})
    ((field, detail),) = [(each["field"], each["detail"]) for each in validations(raised.value)]
    assert field == term
    assert detail.startswith(f'Query param "{term}" has invalid value: ')


@pytest.mark.parametrize(
    ("unit", "length"),
    [
        ("s", timedelta(seconds=1)),
        ("m", MINUTE),
        ("h", timedelta(hours=1)),
        ("d", timedelta(days=1)),
        ("w", timedelta(weeks=1)),
    ],
)
def test_ages_are_times_before_now(unit: str, length: timedelta) -> None:
    """``<`` is after the time so long ago, less what the index does not tell apart; ``>`` is before it."""
    earliest = datetime.now(UTC)
    found = search.between({"changed": f"<7{unit} >2{unit}"}, "changed", MINUTE)
    latest = datetime.now(UTC)
    assert found.after is not None
    assert found.before is not None
    assert earliest - 7 * length - MINUTE <= found.after <= latest - 7 * length - MINUTE
    assert earliest - 2 * length <= found.before <= latest - 2 * length


def test_an_age_may_be_given_once_in_each_direction() -> None:
    """Without any there is no range; of several in one direction none would say what is meant."""
    assert search.between({"created": "<7d"}, "changed", MINUTE) == Between()
    longest = search.between({"created": ">99999w"}, "created", MINUTE)
    assert (longest.after, longest.before is None) == (None, False)
    for ages in ("<7d <8d", ">7d >8d", "7d", "<7", "<-7d", "<7y", "<123456s", "<7dd"):
        with pytest.raises(HTTPError):
            search.between({"created": ages}, "created", MINUTE)


def test_a_page_of_named_tasks_begins_after_the_one_before() -> None:
    """Only those that the page may have are looked up, and one more, which tells whether there is another page.

    The others follow, in case some of these are not found.
    """
    found = [(EPOCH + number * MINUTE, UUID(int=number)) for number in range(9, 0, -1)]

    def page(**fields: object) -> tuple[list[int], list[int]]:
        selected = search._page(found, TaskFilter(ALICE, **{"limit": 2, **fields}))  # type: ignore[arg-type]
        return [each.int for each in selected.ids or ()], [each.int for each in selected.further_ids]

    assert page() == ([9, 8, 7], [6, 5, 4, 3, 2, 1])
    assert page(after=found[2]) == ([6, 5, 4], [3, 2, 1])
    assert page(after=(found[2][0], UUID(int=2**64))) == ([7, 6, 5], [4, 3, 2, 1])
    assert page(after=found[8]) == ([], [])
    assert page(created=Between(after=EPOCH + 7 * MINUTE)) == ([9, 8], [])
    assert page(created=Between(before=EPOCH + 7 * MINUTE)) == ([6, 5, 4], [3, 2, 1])
    assert page(created=Between(EPOCH + 2 * MINUTE, EPOCH + 5 * MINUTE)) == ([4, 3], [])
