"""Whether a value that came as JSON has the type that a field is annotated with: JSON has fewer types than we."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache, partial
from typing import Any, get_args, get_origin, get_type_hints

MAX_INT = 2**64 - 1  # a seed may be

Check = Callable[[Any], bool]


def misfit(record: Any) -> str | None:
    """The name of a field whose value is of another type than its annotation; None if there is none.

    Lists count as tuples once they are some. Whole numbers are counts, ids and seeds: never negative. A float may be
    written as a whole number, and is finite. Texts can be encoded, which not every JSON string can.
    """
    kind: Any = type(record)  # mypy takes no class for hashable
    return next((name for name, fits in _checks(kind) if not fits(getattr(record, name))), None)


@cache
def _checks(kind: type[Any]) -> tuple[tuple[str, Check], ...]:
    """Made once for a class: asking each value what its hint means took 0.6 us for every id of a prompt."""
    hints = get_type_hints(kind)
    return tuple((each.name, _check_of(hints[each.name])) for each in fields(kind))


def _check_of(hint: Any) -> Check:
    origin, args = get_origin(hint), get_args(hint)
    if origin is tuple and args == (int, ...):
        return _are_counts
    if origin is tuple and args[-1] is ...:
        return partial(_is_run, _check_of(args[0]))
    if origin is tuple:
        return partial(_is_row, tuple(map(_check_of, args)))
    if origin is Mapping:
        return _are_texts
    return {int: _is_count, float: _is_number, str: _is_text}.get(hint) or partial(_is_exactly, hint)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INT


def _are_counts(value: Any) -> bool:
    """A prompt may have thousands, so that none is looked at by itself."""
    if not isinstance(value, tuple) or not value:
        return value == ()
    return {*map(type, value)} == {int} and min(value) >= 0 and max(value) <= MAX_INT


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return type(value) is str and (value.isascii() or bool(value.encode()))  # raises for a lone surrogate


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(each) for pair in value.items() for each in pair)


def _is_run(fits: Check, value: Any) -> bool:
    return isinstance(value, tuple) and all(map(fits, value))


def _is_row(fits: tuple[Check, ...], value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == len(fits)
        and all(check(each) for check, each in zip(fits, value, strict=True))
    )


def _is_exactly(kind: type[Any], value: Any) -> bool:
    return type(value) is kind
