"""Check plain values (YAML, JSON) against a JSON Schema, with messages of bounded length."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from histogep.errors import InputError

#: A message shows at most this many problems, and this many letters of each.
MOST_PROBLEMS, MOST_LETTERS = 20, 400
_MOST_ERRORS = 1000
#: Values of a file, counted as often as they are referred to (aliases of YAML).
MOST_VALUES = 200_000
#: How deep lists and objects may lie in each other.
MOST_LEVELS = 50
#: A pattern of gene names needs no more; each repeat multiplies the time that a search can take.
_MOST_REPEATS = 5


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; true and false are not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


def is_integer(value: object) -> bool:
    """Return whether a value is an integer; 1.0 is not, since `range` and the like refuse it."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_gene_pattern(value: object) -> bool:
    """Return True for a regular expression that is searched in gene names.

    Raises
    ------
    ValueError
        It is not one, or its search could take for ever on some names: a repeated group such as
        `(A+)+`, or many repeats.
    """
    if not isinstance(value, str):
        return True
    if len(value) > 500:
        raise ValueError("it has more than 500 letters")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from None
    # Escaped characters, and those in a class, repeat nothing.
    plain = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "x", re.sub(r"\\.", "x", value, flags=re.S))
    if re.search(r"\)[*+{]", plain):
        raise ValueError("a repeated group can take for ever: repeat letters or classes only")
    if len(re.findall(r"[*+{]", plain)) > _MOST_REPEATS:
        raise ValueError(f"more than {_MOST_REPEATS} repeats can take for ever")
    return True


_FORMATS = FormatChecker(formats=())
_FORMATS.checks("gene-pattern", raises=ValueError)(check_gene_pattern)
_Validator = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "number": lambda _, value: is_number(value),
            "integer": lambda _, value: is_integer(value),
        }
    ),
)


def mistakes(
    value: Any,
    schema: Mapping[str, Any],
    *,
    name: str,
    explain: Callable[[ValidationError], str] = lambda error: said(error),
) -> list[str]:
    """Return the violations of a schema by a value, one line each with its place.

    NaN and infinities are not numbers, whatever the schema; 1.0 is not an integer.

    Parameters
    ----------
    value
        Whose size `check_size` has seen.
    schema
        A JSON Schema (2020-12).
    name
        Name of the value in the lines.
    explain
        Returns the words of one mistake.
    """
    validator = _Validator(schema, format_checker=_FORMATS)
    # Of a million wrong values the first ones are enough.
    found = [*itertools.islice(validator.iter_errors(value), _MOST_ERRORS)]
    found.sort(key=lambda error: list(map(str, error.path)))
    lines = [f"{name}{where}: write the key {key} in quotes" for where, key in _other_keys(value)]
    lines += [f"{name}{place(error.absolute_path)}: {explain(error)}" for error in found]
    lines = [cut(line) for line in lines]
    if (left := len(lines) - MOST_PROBLEMS) > 0:
        lines[MOST_PROBLEMS:] = [f"and {left}{' or' if len(found) == _MOST_ERRORS else ''} more"]
    return lines


def _other_keys(value: Any, path: tuple = ()) -> Iterator[tuple[str, str]]:
    """Yield the place of each key that is not text, such as 1, true or null, and the key."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                yield place(path), shown(key)
            yield from _other_keys(part, (*path, key))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _other_keys(part, (*path, number))


def said(error: ValidationError) -> str:
    """Return the words of one mistake; the value in it is cut where it is long."""
    given = error.instance
    if error.validator == "format":
        return f"{shown(given)} is not a regular expression for genes ({error.cause})"
    if isinstance(given, float) and not math.isfinite(given):
        return f"{given} is not a number"
    if isinstance(given, dict | list):
        # The library's words hold the whole value.
        whole = repr(given)
        if len(whole) > 80:
            return error.message.replace(whole, shown(given))
    return error.message


def shown(value: object, *, most: int = 80) -> str:
    """Return a value as Python writes it, cut after `most` letters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def cut(text: str) -> str:
    """Return a line of a message, without what makes it longer than `MOST_LETTERS`."""
    text = " ".join(text.split("\n"))
    if len(text) <= MOST_LETTERS:
        return text
    half = MOST_LETTERS // 2
    return f"{text[:half]} ... {text[-half:]}"


def place(path: Sequence[str | int] | Any) -> str:
    """Return where a value stands: `.key` and `[number]` one after another."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{shown(key)[1:-1]}" for key in path)
    return "".join(parts)


def check_size(value: Any, *, name: str) -> None:
    """Raise InputError for values that are too large to be checked, before anything is copied.

    Ten aliases of YAML, ten levels deep, are ten thousand million values in a hundred bytes.
    """
    counted: dict[int, int] = {}
    if _count(value, counted, 0, name) > MOST_VALUES:
        for key, part in value.items() if isinstance(value, dict) else ():
            if _count(part, counted, 1, name) > MOST_VALUES:
                name = f"{name}: {shown(key)[:MOST_LETTERS]}"
                break
        raise InputError(
            f"{name} has more than {MOST_VALUES:,} values, counted as often as aliases (*) repeat "
            "them: write it without"
        )


def _count(value: Any, counted: dict[int, int], level: int, name: str) -> int:
    """Return how many values hang on a value; each list and object is walked once."""
    if not isinstance(value, dict | list):
        return 1
    if level > MOST_LEVELS:
        raise InputError(
            f"{name} lies more than {MOST_LEVELS} levels deep in itself: write it flat"
        )
    if id(value) not in counted:
        parts = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(part, counted, level + 1, name) for part in parts)
    return counted[id(value)]
