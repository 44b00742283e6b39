"""Training methods: one module each, with its options, its rows of the tables and its weights."""

import dataclasses
import functools
import importlib
import pkgutil
from types import ModuleType

from cutnmix_jax.errors import UsageError, blaming, nearest
from cutnmix_jax.method import Method, Row, View


def names() -> list[str]:
    """The modules of this folder that are methods."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def find(name: str) -> type[Method]:
    """The class of a method, by the name of its module.

    Raises:
      UsageError: there is no method of that name, or its module is broken.
    """
    if name not in names():
        raise UsageError(f"config.loss.name: no method {name!r}; {nearest(name, names())}")
    return type(next(iter(_rows_of(name).values())).method)


def name_of(method: Method) -> str:
    """The name of the module that a method is from, by which a run is read back.

    Raises:
      UsageError: it is from somewhere else, where nothing would find it again.
    """
    kind = type(method)
    name = kind.__module__.rpartition(".")[2]
    if name not in names() or find(name) is not kind:
        raise UsageError(f"config.loss: {kind.__module__}.{kind.__name__} is no method; see docs/own_method.md")
    return name


def row(name: str) -> Row:
    """A row of the tables.

    A broken module stops those alone who ask for one of its rows.

    Raises:
      UsageError: no method has such a row, or two have, or a module is broken and it may be one of its rows.
    """
    broken: UsageError | None = None
    found: dict[str, Row] = {}
    for module in names():
        try:
            rows = _rows_of(module)
        except UsageError as error:
            broken = broken or error
            continue
        if name in rows:
            found[module] = rows[name]
    if len(found) > 1:  # which of them is trained must not follow from the names of files
        raise UsageError(f"method {name!r} is a row of {' and of '.join(found)}; rename one of them in its ROWS")
    if found:
        return next(iter(found.values()))
    raise broken or UsageError(f"no method {name!r}; {nearest(name, rows_by_name())}")


def rows_beside(method: Method) -> dict[str, Row]:
    """The rows of the module that a method is from."""
    return _rows_of(name_of(method))


def has_row(name: str) -> bool:
    """Whether a method that is not broken has the row."""
    try:
        row(name)
    except UsageError:
        return False
    return True


def rows_by_name() -> dict[str, Row]:
    """Every row of every method, in the order of their names.

    Raises:
      UsageError: a module is broken.
    """
    return {row: rows[row] for rows in map(_rows_of, names()) for row in rows}


@functools.cache
def _rows_of(name: str) -> dict[str, Row]:
    file = f"cutnmix_jax/methods/{name}.py"
    with blaming(f"method {name!r}: {file} cannot be imported", "install what it needs, or mend it"):
        module: ModuleType = importlib.import_module(f"{__name__}.{name}")
    rows = getattr(module, "ROWS", None)
    if not rows:
        raise UsageError(f"method {name!r}: {file} has no ROWS; see docs/own_method.md")
    with blaming(f"method {name!r}: the ROWS of {file} cannot be read", "see docs/own_method.md"):
        _check(name, file, rows)
    return rows


def _check(name: str, file: str, rows: object) -> None:
    """Raises UsageError where the rows of a module are not what a `Row` says."""
    if not isinstance(rows, dict) or not all(isinstance(row, Row) for row in rows.values()):
        raise UsageError(f"method {name!r}: ROWS in {file} must be {{name: Row(...)}}; see docs/own_method.md")
    for row in rows.values():
        if not isinstance(row.method, Method):
            raise UsageError(f"method {name!r}: a Row in {file} has no method, made by its class; Row(Mine(), ...)")
        views = row.method.views
        if not isinstance(views, tuple) or not views or not all(isinstance(view, View) for view in views):
            raise UsageError(f"method {name!r}: views in {file} must be View objects in a tuple, as (View(),)")
    if any(row.method.views[0].same_class for row in rows.values()):
        raise UsageError(f"method {name!r}: its first view in {file} is the batch's image; same_class is of others")
    kind = type(next(iter(rows.values())).method)
    if left := [option for option, value in vars(kind).items() if isinstance(value, dataclasses.Field)]:
        raise UsageError(f"method {name!r}: {left[0]} in {file} is no option without @dataclass(frozen=True) above")
    if plain := [it.name for it in dataclasses.fields(kind) if "check" not in it.metadata]:
        raise UsageError(f"method {name!r}: its option {plain[0]} in {file} has no range; make it with `fields.field`")
    # A run is read back by the name of the module, which therefore has to tell the class.
    if len(kinds := sorted({type(row.method).__name__ for row in rows.values()})) > 1:
        raise UsageError(f"method {name!r}: the ROWS of {file} are of {' and '.join(kinds)}; give each class a file")
