"""Dataclasses whose immutability only the type checker enforces, which makes them fast to construct and to copy.

A frozen dataclass sets each field through ``object.__setattr__``: constructing a ``TaskState`` takes eight times as
long as with this module, and replacing one field ten times as long. Values are constructed for every report; the
frozen ones took a fifth of the CPU time of a report.

Use ``value`` as ``dataclass(frozen=True, slots=True)``, and ``replace`` as ``dataclasses.replace``. The type checker
takes them for exactly these, so it rejects an assignment to a field. At run time ``value`` creates a dataclass that is
not frozen, and ``replace`` copies the instance and sets the changed fields, without ``__init__``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as value
    from dataclasses import replace
else:
    from dataclasses import dataclass, fields

    C = TypeVar("C", bound=type)
    V = TypeVar("V")

    def value(*, frozen: bool, slots: bool, kw_only: bool = False) -> Callable[[C], C]:
        """Return a class decorator that creates a dataclass with slots and a hash of its fields, but not frozen."""
        assert frozen
        assert slots

        def decorate(cls: C) -> C:
            cls = dataclass(slots=True, unsafe_hash=True, kw_only=kw_only)(cls)
            cls.__copy__ = _compile_copy(cls)
            return cls

        return decorate

    def _compile_copy(cls: type) -> Any:
        """Return a function that copies an instance, with one assignment per field: a loop would be slower."""
        lines = [f"    new.{field.name} = self.{field.name}" for field in fields(cls)]
        source = "\n".join(["def __copy__(self):", "    new = create(cls)", *lines, "    return new"])
        scope: dict[str, Any] = {"create": object.__new__, "cls": cls}
        exec(source, scope)  # noqa: S102 - contains only field names of taskherd's own classes
        return scope["__copy__"]

    def replace(old: V, /, **changes: Any) -> V:
        """Return a copy of ``old`` with some fields changed."""
        new = old.__copy__()
        for name, content in changes.items():
            setattr(new, name, content)
        return new


__all__ = ["replace", "value"]
