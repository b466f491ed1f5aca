"""Pages that are one file: templates whose places are filled once, and data that cannot become code."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from histogep.files import complete

#: Nothing may be fetched; scripts, styles and images are those of the page itself.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)


def as_json(content: Any) -> str:
    """Return JSON that may stand in a script element of a page, whatever its strings hold."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def write_filled(template: Path, path: str | Path, parts: Mapping[str, str]) -> None:
    """Write a page: its template with @@NAME@@ replaced by parts that are HTML or script already.

    Parameters
    ----------
    template
        A file of `resources/`. @@POLICY@@ is filled with `POLICY`.
    path
        Where to write it.
    parts
        Name -> text. What fills a place is not searched for places.
    """
    known = {"POLICY": html.escape(POLICY), **parts}
    pieces = template.read_text(encoding="utf-8").split("@@")
    filled = [piece if number % 2 == 0 else known[piece] for number, piece in enumerate(pieces)]
    with complete(path) as temporary:
        temporary.write_text("".join(filled), encoding="utf-8")
