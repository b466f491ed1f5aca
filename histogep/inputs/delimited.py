"""Read delimited text from users: sheets, clinical tables, counts and positions.

A record is one line: LF, CRLF and CR end it; form feed, NEL and U+2028 are characters.
Tab-separated text has no quotes (IANA, text/tab-separated-values), so that a `"` is a character;
comma- and semicolon-separated text has those of RFC 4180. Rows with more or fewer cells than the
header are refused by line number, so as many records come back as there are lines. Files are plain,
gzip or zip (one member), recognised by their content. The unpacked size is checked before any of it
is kept.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import logging
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from histogep.errors import InputError

log = logging.getLogger(__name__)

#: Bytes that a table may unpack to unless its reader allows more.
MAX_BYTES = 1 << 30
#: Most bytes of one line, and most columns: a table of 450,000 probes has fewer.
MAX_LINE = 64 << 20
MAX_COLUMNS = 1_000_000
#: Most lines (the finest bins of a Visium HD slide are fewer), and most lines above a header.
MAX_LINES = 20_000_000
_MAX_HEAD = 100_000
_BLOCK = 1 << 20
_SEPARATORS = ("\t", ",", ";")
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "": "nothing"}
#: Bytes that stand for the separator once quotes are removed: no text contains all of them.
_UNIT = tuple(bytes([code]) for code in (0x1F, 0x1E, 0x1D, 0x1C, 0x01, 0x02, 0x03))
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: ASCII characters that `str.strip` removes.
_BLANKS = {bytes([code]) for code in (0x20, 0x09, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x1F)}
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
#: First bytes of files that are often mistaken for tables, and what to do with them.
_FOREIGN = (
    (b"\xd0\xcf\x11\xe0", "an old (.xls) or locked Excel workbook: save it as plain .xlsx"),
    (b"\x89HDF\r\n", "an HDF5 file, not text"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"II*\0", "an image"),
    (b"MM\0*", "an image"),
    (b"PAR1", "a Parquet file, not text"),
    (b"%PDF", "a PDF, not text: save the table as text"),
    (b"{\\rtf", "a document in rich text: save the table as plain text"),
    (b"PK\x05\x06", "an empty archive"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
)
_PAGE = re.compile(r"<(!doctype|html|head|body|script|!--|table|div|meta|p>|br|title|a )")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+")
_WHOLE = re.compile(r"[+-]?\d+(?:[eE][+-]?\d+)?")


@dataclass(frozen=True)
class Delimited:
    """A delimited text whose lines are known and whose cells are not yet split.

    Attributes
    ----------
    path
        The file.
    separator
        Tab, comma or semicolon as it stands in the file; "" where there is one column.
    columns
        Names of the columns without blanks around them ("" for a first column without a name,
        `column 5` for another); numbers from 0 where there is no header.
    names
        The names even where `columns` are numbers because two are alike.
    lines
        Line number in the file of each row.
    header_line
        Line number of the header; 0 where there is none.
    comments
        The lines of comments above the header.
    """

    path: Path
    separator: str
    columns: tuple[Any, ...]
    names: tuple[str, ...]
    lines: np.ndarray
    header_line: int
    comments: tuple[str, ...]
    _body: bytes = field(repr=False)
    _unit: str = field(repr=False)
    _quoted: bool = field(repr=False)
    _error: type[InputError] = field(repr=False)

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, columns: Sequence[Any] | None = None, *, strip: bool = True) -> pd.DataFrame:
        """Return columns as text; the index is the line number in the file.

        Parameters
        ----------
        columns
            Names, in any order; all for None.
        strip
            Remove the blanks around each cell.
        """
        wanted = list(self.columns if columns is None else columns)
        table = self._parse(wanted, dtype=str, na_filter=False)
        return self._cleaned(table, wanted, strip=strip)

    def numbers(
        self,
        columns: Sequence[Any] | None = None,
        *,
        labels: Sequence[Any] = (),
        missing: Collection[str] = (),
    ) -> pd.DataFrame:
        """Return columns as float64 behind the `labels` as text; the index is the line number.

        Decimal commas are understood where the columns hold no decimal point and no cell could as
        well be thousands.

        Parameters
        ----------
        columns
            Names; for None all but the labels.
        labels
            Columns that stay text.
        missing
            Cells that become NaN, as they stand in the file, such as "" and "NA".

        Raises
        ------
        InputError
            Cells that are not numbers, with line and column of the first.
        """
        taken = set(labels)
        values = [c for c in (self.columns if columns is None else columns) if c not in taken]
        types = {**dict.fromkeys(labels, str), **dict.fromkeys(values, np.float64)}
        words = sorted(missing)
        try:
            table = self._parse(
                [*labels, *values],
                dtype=types,
                na_filter=bool(words),
                # Text is never missing: a gene may be called NA.
                na_values=dict.fromkeys(values, words) if words else None,
                keep_default_na=False,
            )
        except (ValueError, OverflowError):
            table = self._numbers_by_text(labels, values, set(words))
        return self._cleaned(table, labels, strip=True)

    def _cleaned(self, table: pd.DataFrame, columns: Sequence[Any], *, strip: bool) -> pd.DataFrame:
        """Remove blanks around cells, and the quotes around whole cells, where there are any."""
        if strip and (
            not self._body.isascii()
            or any(b in self._body for b in _BLANKS - {self._unit.encode()})
        ):
            for name in columns:
                table[name] = table[name].str.strip()
        for name in columns if self._quoted else ():
            table[name] = _unwrap(table[name])
        return table

    def _numbers_by_text(
        self, labels: Sequence[Any], values: Sequence[Any], missing: set[str]
    ) -> pd.DataFrame:
        """Return what `numbers` does, cell by cell: decimal commas, quotes, and what is wrong."""
        table = self.text([*labels, *values])
        named = table[list(values)]
        if self.names:  # for messages
            named.columns = [self.names[self._place(column)] for column in values]
        try:
            found = decimal_numbers(named, missing=missing, comma_likely=self.separator == ";")
        except ValueError as error:
            raise self._error(f"{self.path}: {error}") from None
        found.columns = list(values)
        return pd.concat([table[list(labels)], found], axis=1)

    def _place(self, column: Any) -> int:
        return self.columns.index(column)

    def _parse(self, wanted: Sequence[Any], **options: Any) -> pd.DataFrame:
        place = {name: at for at, name in enumerate(self.columns)}
        if not len(self.lines) or not wanted:
            index = pd.Index(self.lines, name="line")
            return pd.DataFrame({name: pd.Series(dtype=str) for name in wanted}, index=index)
        for key in ("dtype", "na_values"):
            if isinstance(options.get(key), dict):
                options[key] = {place[name]: value for name, value in options[key].items()}
        table = pd.read_csv(
            io.BytesIO(self._body),
            sep=self._unit,
            header=None,
            names=range(len(self.columns)),
            usecols=sorted(place[name] for name in wanted),
            index_col=False,
            quoting=csv.QUOTE_NONE,
            lineterminator="\n",
            skip_blank_lines=False,
            encoding="utf-8",
            low_memory=False,
            **options,
        )
        if len(table) != len(self.lines):
            raise self._error(
                f"{self.path}: {len(table)} records were read of {len(self.lines)} lines"
            )
        table = table[[place[name] for name in wanted]]
        table.columns = list(wanted)
        table.index = pd.Index(self.lines, name="line")
        return table


def open_delimited(
    path: str | Path,
    *,
    what: str = "a table",
    header: bool | Callable[[list[str]], bool] = True,
    separators: Sequence[str] = _SEPARATORS,
    comments: str = "head",
    short_rows: bool = False,
    row_names: bool = False,
    repeated: bool = False,
    n_lines: int | None = None,
    most: int = MAX_BYTES,
    error: type[InputError] = InputError,
) -> Delimited:
    """Return a delimited text, its lines checked.

    Parameters
    ----------
    path
        The file: plain, gzip or zip; UTF-8, UTF-16 or UTF-32 with a byte order mark, else
        Windows-1252.
    what
        What it should be, for messages: "a table of counts".
    header
        Whether the first line names the columns, or a function of its cells that decides this.
    separators
        Which may be used, the likeliest first.
    comments
        `head`: lines above the header that begin with `#`; `all`: such lines anywhere; `none`.
    short_rows
        Whether rows may lack cells at their end, as editors leave them that strip lines.
    row_names
        Whether the header may lack the name of the first column, as R's `write.table` leaves it;
        it is "" then.
    repeated
        Whether two columns may have one name (then columns are called by number, from 0).
    n_lines
        Read no more lines than these.
    most
        Bytes that the file may unpack to.
    error
        `BadSlide` where the file concerns one slide only.

    Returns
    -------
    Delimited
        Blank lines, lines of separators only and comments are not rows. Columns at the end without
        name and content are dropped.

    Raises
    ------
    InputError
        Anything that is not such text: folders and pipes, web pages, workbooks, damaged archives,
        more than `most` bytes or a line of more than `MAX_LINE`; no header; a name twice; rows of
        another width.
    """
    path = Path(path)
    return lay_out(
        path,
        read_bytes(path, what=what, n_lines=n_lines, most=most, error=error),
        what=what,
        header=header,
        separators=separators,
        comments=comments,
        short_rows=short_rows,
        row_names=row_names,
        repeated=repeated,
        error=error,
    )


def lay_out(
    path: Path,
    data: bytes,
    *,
    what: str = "a table",
    header: bool | Callable[[list[str]], bool] = True,
    separators: Sequence[str] = _SEPARATORS,
    unit: str = "",
    comments: str = "head",
    short_rows: bool = False,
    row_names: bool = False,
    repeated: bool = False,
    error: type[InputError] = InputError,
) -> Delimited:
    """Return the table of a text that `read_bytes` returned, or of another with the same lines.

    Parameters
    ----------
    path
        The file that it came from, for messages.
    unit
        A separator that stands in no cell, where the text was made so; quotes are characters then.

    Notes
    -----
    The other parameters are those of `open_delimited`, and so is what is raised.
    """
    starts, ends = _line_ends(data)
    first, declared = 0, ""
    heads: list[str] = []
    while first < min(len(starts), _MAX_HEAD):
        line = data[starts[first] : ends[first]]
        if comments != "none" and line.startswith(b"#"):
            if len(heads) < 100:
                heads.append(line.decode("utf-8"))
        elif found := re.fullmatch(rb"sep=([,;\t])", line.strip()):
            declared = found[1].decode()  # as Excel writes for itself
        elif line.strip(b" \t,;"):
            break
        first += 1
    if first == min(len(starts), _MAX_HEAD):
        raise error(f"{path} is empty; it should be {what}")
    made = unit
    separator = made or declared or _separator(data, starts[first:], ends[first:], separators)
    unit, quoted = separator, b'"' in data and not made
    if separator in (",", ";") and quoted:
        data, unit = _without_quotes(path, data, separator, comments, starts, ends, first, error)
        starts, ends = _line_ends(data)
        quoted = False

    def cells_of(at: int) -> list[str]:
        line = data[starts[at] : ends[at]].decode("utf-8")
        return [cell.strip() for cell in (line.split(unit) if unit else [line])]

    counts = _count(data, unit, starts, ends)
    if counts[first] >= MAX_COLUMNS:
        raise error(f"{path}, line {first + 1}: {counts[first] + 1} columns are too many")
    cells = cells_of(first)
    names = [_unwrap_cell(cell) for cell in cells] if quoted else cells
    headed = header(names) if callable(header) else header
    body = np.arange(first + headed, len(starts))
    keep = ~_blank(data, unit, starts[body], ends[body], counts[body])
    if comments == "all":
        keep &= np.array([not data.startswith(b"#", start) for start in starts[body]], dtype=bool)
    body = body[keep]
    width = len(names)
    if headed:
        while width > 1 and not names[width - 1]:
            width -= 1
        if row_names and len(body) and (counts[body] == len(names)).all():
            names.insert(0, "")
            width = len(names)
        named = [
            name if name or not at else f"column {at + 1}" for at, name in enumerate(names[:width])
        ]
        twice = sorted(name for name, count in Counter(named).items() if count > 1)
        if twice and not repeated:
            raise error(
                f"{path}, line {first + 1}: "
                + "; ".join(f"column {name!r} appears twice" for name in twice[:5])
            )
    else:
        named = []
    body_data = _rows(path, data, unit, starts, ends, body, counts, width, short_rows, error)
    return Delimited(
        path=path,
        separator=separator,
        columns=tuple(named) if headed and not repeated else tuple(range(width)),
        names=tuple(named),
        lines=body + 1,
        header_line=first + 1 if headed else 0,
        comments=tuple(heads),
        _body=body_data,
        _unit=unit or _unused(path, data, error).decode(),
        _quoted=quoted,
        _error=error,
    )


def read_lines(
    path: str | Path, *, what: str, most: int = MAX_BYTES, error: type[InputError] = InputError
) -> list[str]:
    """Return the lines of a text, by the same rules; for formats that are not rectangular (GMT)."""
    text = read_bytes(path, what=what, most=most, error=error).decode("utf-8")
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_bytes(
    path: str | Path,
    *,
    what: str = "a table",
    n_lines: int | None = None,
    most: int = MAX_BYTES,
    error: type[InputError] = InputError,
) -> bytes:
    """Return a text as UTF-8 without byte order mark, its lines ended by LF; see `open_delimited`.

    Raises
    ------
    InputError
        The file is not such text, is damaged, or holds more than it may.
    """
    path = Path(path)
    refuse_special_files(path, error=error)
    try:
        with open(path, "rb") as handle:
            head = handle.read(512)
        if told := _foreign(head):
            raise error(f"{path} is not a table but {told}")
        if head.startswith((_GZIP, _ZIP)) and n_lines is None:
            for _ in _blocks(path, head, most, error):
                pass  # counted before any of it is kept
        kept, held = [], 0
        for block in _blocks(path, head, most, error):
            kept.append(block)
            held += block.count(b"\n") or block.count(b"\r")
            if n_lines is not None and held > n_lines:
                break
        else:
            n_lines = None
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as damage:
        raise error(f"{path} is damaged or cut short ({damage}): fetch it again") from None
    except (OSError, RuntimeError, NotImplementedError) as problem:
        raise error(f"{path} cannot be read as {what}: {problem}") from None
    data = b"".join(kept)
    if told := _foreign(data[:512]):
        raise error(f"{path} is not a table: what it unpacks to is {told}")
    data = _as_utf8(path, data, what, error, cut=n_lines is not None)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if n_lines is not None:
        data = b"\n".join(data.split(b"\n")[:n_lines])
    start = data[:300].lstrip().decode("utf-8", "ignore").lower()
    if _PAGE.match(start):
        raise error(
            f"{path} is not a table but a web page, such as a login or error page: fetch the "
            "file itself again"
        )
    if start.startswith(("<?xml", "{")):
        kind = "XML" if start.startswith("<") else "JSON"
        raise error(f"{path} is not a table but {kind}: save it as delimited text")
    if start.startswith("version https://git-lfs"):
        raise error(
            f"{path} is not a table but a pointer of Git LFS: fetch the file (git lfs pull)"
        )
    if start.startswith("/annex/objects/"):
        raise error(f"{path} is not a table but a pointer of git-annex: fetch the file itself")
    return data


def refuse_special_files(path: str | Path, *, error: type[InputError] = InputError) -> None:
    """Raise an InputError unless a path is a file: a pipe would be waited for without end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError) as problem:
        raise error(f"{str(path)[:200]!r} cannot be opened: {problem}") from None
    if stat.S_ISDIR(mode):
        raise error(f"{path} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise error(f"{path} is a pipe, socket or device, not a file: write it to a file first")


def decimal_numbers(
    table: pd.DataFrame, *, missing: Collection[str] = (), comma_likely: bool = False
) -> pd.DataFrame:
    """Return columns of text as numbers, with decimal points or decimal commas.

    Parameters
    ----------
    table
        Text without blanks around it; the index is the line number.
    missing
        Cells that become NaN.
    comma_likely
        The columns are separated by semicolons, as where commas are decimal: `1,234` is 1.234.

    Raises
    ------
    ValueError
        Cells that are not numbers, with line and column of the first; commas that may be decimal
        or thousands separators.
    """
    words = set(missing)
    numbers = table.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    odd = numbers.isna() & ~table.isin(words)
    if not odd.any(axis=None):
        return numbers
    cells = pd.unique(table.to_numpy()[odd.to_numpy()])
    if all(_DECIMAL_COMMA.fullmatch(cell) for cell in cells):
        others = pd.unique(table.to_numpy()[~odd.to_numpy()])
        pointed = [cell for cell in others if cell not in words and not _WHOLE.fullmatch(cell)]
        certain = comma_likely or any(not _THOUSANDS.fullmatch(cell) for cell in cells)
        if certain and not pointed:
            known = table.where(~odd, table.apply(lambda column: column.str.replace(",", ".")))
            return known.apply(pd.to_numeric, errors="coerce").astype(np.float64)
        if certain:
            why = f"decimal commas beside decimal points ({pointed[0]})"
        else:
            why = "a comma that may be a decimal or a thousands separator"
        raise ValueError(f"{_first_place(table, odd)} has {why}: write decimal points only")
    other = odd & ~table.map(lambda cell: bool(_DECIMAL_COMMA.fullmatch(cell)))
    count = int(other.to_numpy().sum())
    columns = [str(name) for name in table.columns[other.any()]]
    raise ValueError(
        f"{_first_place(table, other)} is not a number; cells that are not numbers: {', '.join(columns[:5])} "
        f"({count} in {len(columns)} columns): write numbers such as 1234.5, without thousands or units"
    )


def _first_place(table: pd.DataFrame, where: pd.DataFrame) -> str:
    at = int(where.to_numpy().any(axis=1).argmax())
    column = int(where.to_numpy()[at].argmax())
    return (
        f"line {table.index[at]}, column {str(table.columns[column])!r}: {table.iloc[at, column]!r}"
    )


def _foreign(head: bytes) -> str:
    for start, told in _FOREIGN:
        if head.startswith(start):
            return told
    if head.startswith(_ZIP):
        if b"[Content_Types].xml" in head or b"xl/" in head:
            return "an Excel workbook by its content: give it a name that ends in .xlsx"
        if b"opendocument" in head:
            return "an OpenDocument table: save it as .xlsx or as text"
    return ""


def _blocks(path: Path, head: bytes, most: int, error: type[InputError]) -> Iterator[bytes]:
    """Give the bytes of a file, unpacked, while neither they nor one line are too many."""
    held = line = lines = 0
    with _unpacked(path, head, most, error) as stream:
        while block := stream.read(_BLOCK):
            held += len(block)
            lines += block.count(b"\n") or block.count(b"\r")
            end = max(block.rfind(b"\n"), block.rfind(b"\r"))
            line = line + len(block) if end < 0 else len(block) - end
            if held > most:
                raise error(
                    f"{path} holds more than {most / 1e6:.0f} MB of text once unpacked, which no such "
                    "table does: is it the right file, and whole?"
                )
            if lines > MAX_LINES:
                raise error(
                    f"{path} has more than {MAX_LINES / 1e6:.0f} million lines: it is not a table"
                )
            if line > MAX_LINE:
                raise error(
                    f"{path} has a line of more than {MAX_LINE / 1e6:.0f} MB: it is not a table of rows"
                )
            yield block


@contextlib.contextmanager
def _unpacked(
    path: Path, head: bytes, most: int, error: type[InputError]
) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open a file, the content of a gzip file, or the one member of a zip archive."""
    if head.startswith(_GZIP):
        with gzip.open(path, "rb") as stream:
            yield stream
    elif head.startswith(_ZIP):
        with zipfile.ZipFile(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if not member.is_dir() and not member.filename.startswith("__MACOSX")
            ]
            if len(members) != 1:
                raise error(f"{path}: {len(members)} files in the archive, one is read: unpack it")
            if members[0].flag_bits & 1:
                raise error(f"{path} is locked with a password: unpack it first")
            if members[0].file_size > most:
                raise error(
                    f"{path} holds more than {most / 1e6:.0f} MB of text once unpacked, which no such "
                    "table does: is it the right file, and whole?"
                )
            with archive.open(members[0]) as stream:
                yield stream
    else:
        with open(path, "rb") as stream:
            yield stream


def _as_utf8(path: Path, data: bytes, what: str, error: type[InputError], *, cut: bool) -> bytes:
    """Return text as UTF-8 without byte order mark; `cut`: it goes on behind these bytes."""
    mark, encoding = next(((m, e) for m, e in _BOMS if data.startswith(m)), (b"", ""))
    try:
        if encoding in ("utf-16", "utf-32"):
            text = codecs.getincrementaldecoder(encoding)().decode(data, final=not cut)
            data = text.encode("utf-8")
        else:
            data = data.removeprefix(mark)
            if cut and (end := max(data.rfind(b"\n"), data.rfind(b"\r"))) > 0:
                data = data[:end]
            if not data.isascii():
                data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        if encoding or b"\0" in data:
            raise error(f"{path} is not text in {encoding or 'UTF-8'} ({wrong.reason})") from None
        return _from_cp1252(path, data, what, error)
    if b"\0" in data:
        line = data[: data.find(b"\0")].count(b"\n") + 1
        raise error(
            f"{path}, line {line}: a NUL byte: it is not text, or UTF-16 without a byte order mark; "
            "save it as UTF-8"
        )
    return data


def _from_cp1252(path: Path, data: bytes, what: str, error: type[InputError]) -> bytes:
    """Return Windows-1252 text as UTF-8, unless it is damaged UTF-8 or not text."""
    as_utf8 = data.decode("utf-8", "replace")
    broken = as_utf8.count("\ufffd")
    whole = sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", as_utf8)))
    line = as_utf8[: as_utf8.find("\ufffd")].count("\n") + 1
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise error(f"{path}, line {line} is neither UTF-8 nor Windows-1252 text") from None
    if whole >= broken:
        raise error(f"{path}, line {line}: damaged UTF-8: save {what} as UTF-8 again")
    if re.search(r"[\x00-\x08\x0e-\x1a]", text[: 1 << 16]):
        raise error(f"{path} is not text: {what} is delimited text")
    words = dict.fromkeys(re.findall(r"\w*[^\W\x00-\x7f]\w*", text[: 1 << 20]))
    log.warning(
        "%s is not UTF-8: read as Windows-1252%s",
        path,
        f" (such as {', '.join(list(words)[:3])})" if words else "",
    )
    return text.encode("utf-8")


def _line_ends(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return where each line begins and ends."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    if data and not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    return starts.astype(np.int64), ends.astype(np.int64)


def _separator(data: bytes, starts: np.ndarray, ends: np.ndarray, separators: Sequence[str]) -> str:
    """Return the separator by which the first lines have as many cells as the header.

    Where none does: the likeliest of those that stand in the header, tabs before all.
    """
    lines = [
        re.sub(rb'"[^"]*"', b"", data[start:end])
        for start, end in zip(starts[:50], ends[:50], strict=True)
    ]
    # A tab between two quoted cells is all that is left of a row.
    header, rows = lines[0], [line for line in lines[1:] if line.strip(b" ")]
    there = [s for s in separators if s.encode() in header]
    if not there:
        # R's write.table of one column with row names: its header has no separator.
        there = [s for s in separators if rows and all(s.encode() in line for line in rows)]
        return there[0] if there else ""

    def fits(separator: str) -> tuple[bool, int]:
        count = header.count(separator.encode())
        even = all(abs(line.count(separator.encode()) - count) <= 1 for line in rows)
        return even, count

    if "\t" in there and fits("\t")[0]:
        return "\t"
    best = max(there, key=fits)
    return best if fits(best)[0] or "\t" not in there else "\t"


def _unused(path: Path, data: bytes, error: type[InputError]) -> bytes:
    for unit in _UNIT:
        if unit not in data:
            return unit
    raise error(f"{path} is not text: it holds control characters of every kind")


def _without_quotes(
    path: Path,
    data: bytes,
    separator: str,
    comments: str,
    starts: np.ndarray,
    ends: np.ndarray,
    first: int,
    error: type[InputError],
) -> tuple[bytes, str]:
    """Return the text with quotes taken away (RFC 4180) and cells separated by another character."""
    unit = _unused(path, data, error).decode()
    lines = []
    before = csv.field_size_limit(MAX_LINE)
    try:
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            raw = data[start:end].decode("utf-8")
            if number < first or (comments == "all" and raw.startswith("#")):
                lines.append(raw)
            elif '"' not in raw:
                lines.append(raw.replace(separator, unit))
            else:
                cells = next(csv.reader([raw], delimiter=separator, strict=True))
                lines.append(unit.join(cells))
    except csv.Error as wrong:
        raise error(
            f"{path}, line {number + 1}: a quote that does not end where its cell does ({wrong}); "
            'write a quote within a cell twice ("") and no line end within a cell'
        ) from None
    finally:
        csv.field_size_limit(before)
    return "\n".join(lines).encode("utf-8"), unit


def _count(data: bytes, unit: str, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the number of separators of each line."""
    counts = np.zeros(len(starts), np.int64)
    if not unit:
        return counts
    bytes_ = np.frombuffer(data, np.uint8)
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + (64 << 20))))
        low, high = starts[first], ends[last - 1]
        # A line end of its own, so that an empty last line has a byte.
        found = np.append(bytes_[low:high] == ord(unit), False)
        counts[first:last] = np.add.reduceat(found, starts[first:last] - low, dtype=np.int64)
        first = last
    return counts


def _blank(
    data: bytes, unit: str, starts: np.ndarray, ends: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Return which lines hold nothing but separators and blanks."""
    if not len(starts):
        return np.zeros(0, bool)
    length = ends - starts
    blank = length == counts
    bytes_ = np.append(np.frombuffer(data, np.uint8), ord("\n"))
    begins = np.isin(bytes_[starts], list(map(ord, f"{unit} \t")))
    for at in np.flatnonzero(begins & ~blank):
        line = data[starts[at] : ends[at]].decode("utf-8")
        blank[at] = not line.replace(unit, "").strip() if unit else not line.strip()
    return blank


def _rows(
    path: Path,
    data: bytes,
    unit: str,
    starts: np.ndarray,
    ends: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    width: int,
    short_rows: bool,
    error: type[InputError],
) -> bytes:
    """Return the rows, each of as many cells as there are columns.

    Parameters
    ----------
    rows
        Which lines they are.
    """
    cells = counts[rows] + 1
    odd = cells != width
    if not odd.any():
        if len(rows) and len(rows) == rows[-1] - rows[0] + 1:
            return (
                data[starts[rows[0]] :]
                if rows[-1] == len(starts) - 1
                else (data[starts[rows[0]] : ends[rows[-1]]])
            )
        return b"\n".join([data[starts[row] : ends[row]] for row in rows])
    problems, lines = [], []
    for row, wrong in zip(rows, odd, strict=True):
        line = data[starts[row] : ends[row]]
        if wrong:
            parts = line.decode("utf-8").split(unit) if unit else [line.decode("utf-8")]
            if len(parts) < width and short_rows:
                parts += [""] * (width - len(parts))
            elif len(parts) > width and not "".join(parts[width:]).strip():
                parts = parts[:width]
            else:
                problems.append((row + 1, len(parts)))
            line = unit.join(parts).encode("utf-8")
        lines.append(line)
    if problems:
        told = [f"line {line}: {count} cells under {width} columns" for line, count in problems]
        more = f"\n  and {len(told) - 10} more lines" if len(told) > 10 else ""
        if width == 1 and {count for _, count in problems} != {1}:
            more += "\n  the first line has one cell: is it a title? The names of the columns come first"
        elif len(told) == len(rows) and {count for _, count in problems} == {width + 1}:
            more += "\n  every row has one cell more than the header: name the first column too"
        raise error(
            f"{path} has rows that do not fit its header:\n  " + "\n  ".join(told[:10]) + more
        )
    return b"\n".join(lines)


def _unwrap(cells: pd.Series) -> pd.Series:
    """Take the quotes around whole cells of tab-separated text away, as Excel and R write them.

    Only where every cell of the column that has a quote is one that such a writer would write;
    else quotes are characters, all of them.
    """
    quoted = cells.str.contains('"', regex=False)
    if not quoted.any() or not all(map(_is_wrapped, cells[quoted])):
        return cells
    return cells.where(~quoted, cells.map(_unwrap_cell))


def _is_wrapped(cell: str) -> bool:
    inner = cell[1:-1]
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")


def _unwrap_cell(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if _is_wrapped(cell) else cell
