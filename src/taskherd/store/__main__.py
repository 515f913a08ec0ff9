"""Prints the statements of the store as they are sent to PostgreSQL: `python -m taskherd.store tasks.SAVE leases`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from sqlalchemy import TextClause

from taskherd import store


def statements() -> Iterator[tuple[str, str]]:
    """Return the name, as `module.CONSTANT`, and the SQL of each statement, in the order of the modules."""
    for module in iter_modules(store.__path__):
        if module.ispkg or module.name == "__main__":
            continue
        for name, statement in vars(import_module(f"{store.__name__}.{module.name}")).items():
            if isinstance(statement, TextClause):
                yield f"{module.name}.{name}", str(statement).strip()


def main(wanted: list[str]) -> None:
    """Print the statements wanted, by name or by module; all of them if none is named."""
    for name, sql in statements():
        if not wanted or name in wanted or name.partition(".")[0] in wanted:
            sys.stdout.write(f"-- {name}\n{sql};\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
