"""Errors that a user can correct: what was given is wrong, or one slide of many is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

#: Letters of a message at most: what a file holds may stand in it, and may be of any length.
_LONGEST_MESSAGE = 20_000


class InputError(ValueError):
    """Something the user gave is wrong; the message names the file, the place and the remedy."""

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if len(text) > _LONGEST_MESSAGE:
            half = _LONGEST_MESSAGE // 2
            left_out = f"... ({len(text) - 2 * half:,} letters left out) ..."
            text = f"{text[:half]}\n{left_out}\n{text[-half:]}"
        super().__init__(text)


class BadSlide(InputError):
    """One slide cannot be used, the others can: `on_bad_slide: skip` goes on without it.

    Settings, sheets and weights that are wrong concern every slide, and are never a BadSlide.

    Parameters
    ----------
    reason
        The message.
    rule
        The rule that found out, when that is known.
    """

    def __init__(self, reason: str, *, rule: str = "") -> None:
        super().__init__(reason)
        self.rule = rule


def suggestion(given: object, known: Sequence[str]) -> str:
    """Return, for the end of a message, which known name was probably meant, or all of them."""
    close = difflib.get_close_matches(str(given).strip('"').lower(), known, n=1)
    return f", did you mean {close[0]!r}?" if close else f" (known: {', '.join(known)})"
