"""Values: dataclasses that nothing changes once they are made. mypy sees to that; at run time it would cost too much.

A frozen dataclass sets each of its fields through ``object.__setattr__``: making a ``Memory`` takes eight times as long
as here, and replacing a field of one ten times. Values are made for every report; all that was a fifth of its CPU.

To the type checker ``value`` and ``replace`` are those of ``dataclasses``, so assigning to a field is an error there.
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
        """What ``dataclass`` does, compared and hashed by its fields as a frozen one is, but without the freeze."""
        assert frozen
        assert slots

        def made(cls: C) -> C:
            cls = dataclass(slots=True, unsafe_hash=True, kw_only=kw_only)(cls)
            cls.__copy__ = _copier(cls)
            return cls

        return made

    def _copier(cls: type) -> Any:
        """A function that copies an instance field by field, written out as ``dataclass`` writes out its methods."""
        lines = [f"    new.{field.name} = self.{field.name}" for field in fields(cls)]
        source = "\n".join(["def __copy__(self):", "    new = create(cls)", *lines, "    return new"])
        scope: dict[str, Any] = {"create": object.__new__, "cls": cls}
        exec(source, scope)  # noqa: S102 - the names of fields of our own classes
        return scope["__copy__"]

    def replace(old: V, /, **changes: Any) -> V:
        """The value with some of its fields changed."""
        new = old.__copy__()
        for name, content in changes.items():
            setattr(new, name, content)
        return new


__all__ = ["replace", "value"]
