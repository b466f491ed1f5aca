"""Which slides have their figures in the report, and that it stays small whatever the cohort."""

from histogep.report.chosen_figures import choose_slides, copy_figures
from tests.report.test_cohort_page import predicted_table, slide_table


def test_sections_the_first_and_the_furthest_flagged_are_chosen():
    slides = slide_table(12, sections=2)
    predicted = predicted_table(slides, median_ood_score=[0.1 * i for i in range(10)],
                                out_of_distribution=[False] * 4 + [True] * 6)  # fmt: skip
    assert choose_slides(slides, predicted, most=2) == ["S0", "S1", "S2", "S3", "S10", "S11"]
    assert choose_slides(slides, predicted, most=0) == ["S0", "S1"]
    assert choose_slides(slides, None, most=1) == ["S0", "S1", "S2"]


def test_a_slide_that_cannot_be_used_comes_before_those_far_away():
    slides = slide_table(12, sections=2)
    slides.loc[11, ["status", "reason"]] = ["left out", "no tissue"]
    predicted = predicted_table(slides.iloc[:11], median_ood_score=5.0, out_of_distribution=True)
    assert choose_slides(slides, predicted, most=1) == ["S0", "S1", "S2", "S11"]


def test_a_cohort_that_is_flagged_as_a_whole_does_not_fill_the_report():
    slides = slide_table(5000, sections=10)
    predicted = predicted_table(slides, out_of_distribution=True)
    assert len(choose_slides(slides, predicted, most=50)) <= 10 + 2 * 50


def test_figures_of_chosen_slides_are_copied(tmp_path):
    for name in ("S0", "S1", "S1.png"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    figures = sorted(tmp_path.glob("*.png"))
    assert copy_figures(["S1.png", "S0", "S9"], figures, tmp_path / "chosen") == 2
    assert sorted(p.name for p in (tmp_path / "chosen").iterdir()) == ["S0.png", "S1.png.png"]
    assert (tmp_path / "chosen/S0.png").read_bytes() == b"S0"
    assert copy_figures([], [], tmp_path / "none") == 0
    assert (tmp_path / "none").is_dir()
