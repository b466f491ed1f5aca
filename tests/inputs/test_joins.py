"""Shares of joins, and what would explain them."""

import pytest

from histogep.errors import BadSlide, InputError
from histogep.inputs.joins import explain_names, judge_join, round_st_names


@pytest.mark.parametrize(
    ("found", "level"), [(100, "INFO"), (50, "INFO"), (49, "WARNING"), (10, "WARNING")]
)
def test_a_join_below_a_half_is_warned_of(found, level, caplog):
    caplog.set_level("INFO")
    said = judge_join("spots of a that are in b", found, 100, explain=lambda: "because")
    assert said.startswith(f"{found} of 100 spots of a that are in b ({found}%)")
    assert [record.levelname for record in caplog.records] == [level]
    assert ("because" in caplog.text) == (level == "WARNING")


@pytest.mark.parametrize(("found", "total"), [(9, 100), (0, 5), (0, 0)])
def test_a_join_of_hardly_anything_is_refused(found, total):
    with pytest.raises(InputError, match=f"only {found} of {total} spots .*because"):
        judge_join("spots", found, total, explain=lambda: "because")
    with pytest.raises(BadSlide):
        judge_join("spots", found, total, error=BadSlide)


def test_examples_are_of_names_that_do_not_match():
    assert explain_names(["A", "B", "C"], ["A", "X"]) == (
        "one names B, C, the other A, X; both files must be of the same section"
    )
    assert "10 would match" in explain_names(
        [f"X{i}_3" for i in range(10)], [f"{i}x3" for i in range(10)]
    )


def test_names_of_legacy_spots_are_rounded():
    assert list(round_st_names(["9.98x13.02", "3x4"])) == ["10x13", "3x4"]
    assert round_st_names(["AAAC-1", "3x4"]) is None
    assert round_st_names([]) is None
    with pytest.raises(InputError, match=r"1\.2x1 and 1\.1x1 both lie nearest to 1x1"):
        round_st_names(["1.2x1", "1.1x1"])
