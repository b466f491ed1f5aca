"""Bytes flipped, cut, swapped and zeroed in every kind of input: right, or refused by name.

`HISTOGEP_DAMAGE_DRAWS=20000` before pytest draws as often over all kinds; 200 by default. The seed is
fixed, so that a failure names a draw that can be made again. Reading is done in a process of its own,
whose death is an outcome like any other. What counts as right where a format cannot notice that its
bytes were changed stands at `tests.damage.Kind.notices`.
"""

from __future__ import annotations

import os
import resource
import shutil
import zlib
from multiprocessing import get_context

import numpy as np
import pytest

from tests.damage import KINDS, attempt, damage, lines_of, pack_model

DRAWS = int(os.environ.get("HISTOGEP_DAMAGE_DRAWS", "200"))
#: Bytes of address space of the reader: what asks for more has believed a damaged size.
MEMORY = 8 << 30
SECONDS = 120


def serve(connection):
    """Read what is asked for, until nothing is."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while question := connection.recv():
        connection.send(attempt(*question))


class Reader:
    """A process that reads, started again when it died."""

    process = None

    def __call__(self, kind, path):
        if self.process is None:
            context = get_context("forkserver")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
        self.connection.send((kind, str(path)))
        try:
            if self.connection.poll(SECONDS):
                return self.connection.recv()
            outcome = "hung", f"no answer in {SECONDS} s"
        except (EOFError, ConnectionError):
            self.process.join(SECONDS)
            outcome = "died", f"the reader ended with {self.process.exitcode}"
        self.close()
        return outcome

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pack_model(tmp_path_factory.mktemp("study"))


def made(kind, folder, model):
    """Return the whole file of a kind, in a folder of its own."""
    if kind.startswith("model "):
        shutil.copytree(model, folder)
    else:
        folder.mkdir()
    return KINDS[kind].make(folder)


def complaint(kind, path, before, after, *, n_lines):
    """Return what is wrong with an outcome; "" where it is right, identical, or refused by name."""
    outcome, said = after
    if outcome == "refused":
        names = {path.name, path.parent.name, path.parent.parent.name}
        return "" if any(name in said for name in names) else f"refused without a name: {said}"
    if outcome != "read":
        return f"{outcome}: {said}"
    if said == before:
        return ""
    notices = KINDS[kind].notices
    if notices == "all":
        return "changed without a word"
    if notices == "size" and said[0] != before[0]:
        return f"read {said[0]} in place of {before[0]} without a word"
    if notices == "lines" and said[0] not in (n_lines, n_lines - 1):
        return f"read {said[0]} rows of {n_lines} lines without a word"
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_input_is_right_or_refused_by_name(tmp_path, request, reader, kind):
    model = request.getfixturevalue("model") if kind.startswith("model ") else None
    whole = made(kind, tmp_path / "whole", model)
    content = whole.read_bytes()
    outcome, before = reader(kind, whole)
    assert outcome == "read", before
    assert reader(kind, whole) == ("read", before), "two readings of a whole file differ"
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    complaints, n_refused = [], 0
    n_draws = -(-DRAWS // len(KINDS))
    for draw in range(n_draws):
        path = made(kind, tmp_path / f"draw{draw}", model)
        how, changed = damage(content, rng)
        path.write_bytes(changed)
        after = reader(kind, path)
        n_refused += after[0] == "refused"
        if said := complaint(kind, path, before, after, n_lines=lines_of(changed)):
            complaints.append(f"draw {draw} ({how}): {said}")
        shutil.rmtree(tmp_path / f"draw{draw}")
    assert not complaints, f"{len(complaints)} of {n_draws}:\n" + "\n".join(complaints[:20])


def test_every_way_of_damage_is_drawn():
    rng = np.random.default_rng(0)
    ways = {damage(b"some bytes of a file" * 50, rng)[0].split()[0] for _ in range(200)}
    assert len(ways) == 9
