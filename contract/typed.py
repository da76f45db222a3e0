"""Whether a value that came as JSON has the type that a field is annotated with: JSON has fewer types than we."""

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

MAX_INT = 2**64 - 1  # a seed may be


def misfit(record: Any) -> str | None:
    """The name of a field whose value is of another type than its annotation; None if there is none.

    Lists count as tuples once they are some. Whole numbers are counts, ids and seeds: never negative. A float may be
    written as a whole number, and is finite. Texts can be encoded, which not every JSON string can.
    """
    kind: Any = type(record)  # mypy takes no class for hashable
    return next((name for name, hint in _hints(kind) if not _fits(getattr(record, name), hint)), None)


@cache
def _hints(kind: type[Any]) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((each.name, hints[each.name]) for each in fields(kind))


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and args[-1] is ...:
        return isinstance(value, tuple) and all(_fits(each, args[0]) for each in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(_fits, value, args))
    if origin is Mapping:
        return isinstance(value, dict) and all(_fits(each, str) for pair in value.items() for each in pair)
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_INT
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is str:
        return type(value) is str and (value.isascii() or bool(value.encode()))  # raises for a lone surrogate
    return type(value) is hint
