"""Print the store's statements as they are sent to PostgreSQL: ``python -m taskherd.store tasks.SAVE leases``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from sqlalchemy import TextClause

from taskherd import store
from taskherd.store.direct import DirectStatement


def constants() -> Iterator[tuple[str, TextClause | DirectStatement]]:
    """Yield the name, as ``module.CONSTANT``, and each statement, in the order of the modules."""
    for module in iter_modules(store.__path__):
        if module.ispkg or module.name == "__main__":
            continue
        for name, statement in vars(import_module(f"{store.__name__}.{module.name}")).items():
            if isinstance(statement, TextClause | DirectStatement):
                yield f"{module.name}.{name}", statement


def statements() -> Iterator[tuple[str, str]]:
    """Yield the name and the SQL of each statement, in the order of the modules."""
    for name, statement in constants():
        yield name, str(statement).strip()


def main(names: list[str]) -> None:
    """Print the statements with these names, or of these modules; print all if ``names`` is empty."""
    for name, sql in statements():
        if not names or name in names or name.partition(".")[0] in names:
            sys.stdout.write(f"-- {name}\n{sql};\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
