from __future__ import annotations

from copy import copy
from typing import Any

import pytest

from taskherd.domain.task import Inbox
from taskherd.domain.value import replace, value


@value(frozen=True, slots=True)
class Wide(Inbox):
    """A value with a field of its own."""

    more: int = 0


def test_replace_makes_a_new_value() -> None:
    """The old value stays as it is, and values are the same when their fields are, inherited ones too."""
    old = Wide(queued=1, more=2)
    new = replace(old, queued=3)
    assert (old, new) == (Wide(queued=1, more=2), Wide(queued=3, more=2))
    assert new != old
    assert copy(new) == new
    assert hash(copy(new)) == hash(new)
    assert Inbox(queued=3) != new


def test_a_field_that_is_not_there() -> None:
    """A value takes no field that it does not have."""
    changes: dict[str, Any] = {"queud": 1}
    with pytest.raises(AttributeError):
        replace(Inbox(), **changes)
