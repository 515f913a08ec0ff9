"""Values: copies with changed fields, equality and hashes."""

from __future__ import annotations

from copy import copy
from typing import Any

import pytest

from taskherd.domain.task import Inbox
from taskherd.domain.value import replace, value


@value(frozen=True, slots=True)
class Wide(Inbox):
    """A value with inherited fields and one more."""

    more: int = 0


def test_replace_returns_a_changed_copy() -> None:
    """The old value does not change, and values are equal if all their fields are, inherited ones too."""
    old = Wide(queued=1, more=2)
    new = replace(old, queued=3)
    assert (old, new) == (Wide(queued=1, more=2), Wide(queued=3, more=2))
    assert new != old
    assert copy(new) == new
    assert hash(copy(new)) == hash(new)
    assert Inbox(queued=3) != new


def test_replace_rejects_an_unknown_field() -> None:
    """A field that the value does not have raises ``AttributeError``."""
    changes: dict[str, Any] = {"queud": 1}
    with pytest.raises(AttributeError):
        replace(Inbox(), **changes)
