"""Which warnings are heard, and how they are marked."""

import ast
import logging
from pathlib import Path

import pytest

from histogep.warned import SUBJECTS, Warned, decides, heard, of_slide

ROOT = Path(__file__).resolve().parents[1]


def test_warnings_of_the_library_are_heard_once_each_with_their_marks():
    log = logging.getLogger("histogep.labels.tumour")
    with heard() as listener:
        log.info("not a warning")
        for _ in range(3):
            log.warning("%d spots", 7)
        log.warning("%d spots", 7, **decides("tumour", "expression", slide="A"))
        log.error("refused", **of_slide("B"))
        logging.getLogger("scanpy").warning("of another package")
    log.warning("after the block")
    assert listener.warned == [
        Warned("7 spots", n=3),
        Warned("7 spots", ("tumour", "expression"), "A"),
        Warned("refused", slide="B"),
    ]


@pytest.mark.parametrize("subjects", [("tumor",), ("tumour", "everything"), ()])
def test_a_subject_that_does_not_exist_is_refused(subjects):
    with pytest.raises(ValueError, match="a warning decides one of"):
        decides(*subjects)


def _calls():
    """Yield file and call of every decides(...) in the library."""
    for path in sorted(ROOT.glob("histogep/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "decides":
                yield path, node


def test_every_mark_of_the_library_names_known_subjects():
    """A mark is reached only when its warning is given, which few tests do."""
    calls = list(_calls())
    assert len(calls) > 20
    for path, call in calls:
        names = [argument.value for argument in call.args]
        assert names, path
        assert set(names) <= set(SUBJECTS), path


def test_no_logger_of_the_library_lies_where_nobody_listens():
    for path in sorted(ROOT.glob("histogep/**/*.py")):
        text = path.read_text()
        assert (
            "getLogger(__name__)" in text
            or ".warning(" not in text
            or path.stem
            in (
                "job",
                "warned",
            )
        ), path
