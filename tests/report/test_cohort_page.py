"""The page that lists all slides: what stands in it, its size, and its buttons in a real browser."""

import json
import re

import numpy as np
import pandas as pd
from scipy import ndimage

from histogep.files import write_tsv
from histogep.report.cohort_page import cohort_rows, risk_notes, write_cohort_page
from histogep.slides.inventory import COLUMNS, PREDICTED
from histogep.slides.thumbnail import write_thumbnail
from tests.chromium import needs_chromium, opened

HOSTILE = "</script><img src=x onerror=window.hacked=1>"


def slide_table(n=6, sections=2):
    rows = []
    for i in range(n):
        role = "section" if i < sections else "slide"
        values = {"slide": f"S{i}", "patient": f"P{i // 2}", "cohort": "c", "role": role}
        values |= {"status": "used", "reason": "", "mpp": 0.5, "n_tiles": 100 + i}
        rows.append({**dict.fromkeys(COLUMNS, 0.0), **values})
    return pd.DataFrame(rows)[list(COLUMNS)]


def predicted_table(slides, **changed):
    mine = slides[slides["role"] == "slide"]
    table = mine[["slide", "patient", "cohort", "n_tiles"]].assign(
        tumour_fraction=np.linspace(0.1, 0.9, len(mine)), median_ood_score=0.7,
        out_of_distribution_fraction=0.1, out_of_distribution=False, training_section="",
    )[list(PREDICTED)]  # fmt: skip
    for name, values in changed.items():
        table[name] = values
    return table


def draw(tmp_path, rows, **options):
    thumbnails = {}
    for slide in rows["slide"]:
        thumbnails[slide] = tmp_path / f"{abs(hash(slide))}.jpg"
        write_thumbnail(np.full((80, 60, 3), 200, np.uint8), thumbnails[slide])
    page = tmp_path / "index.html"
    write_cohort_page(rows, page, study="s", thumbnails=thumbnails, **{"pages": ["S0"], **options})
    return page


def content(path):
    return json.loads(re.search(r'id="content">(.*?)</script>', path.read_text())[1])


def test_a_row_has_tumour_flags_and_risk(tmp_path):
    slides = slide_table()
    slides.loc[4, "share_blurred"] = 0.8
    predicted = predicted_table(slides, out_of_distribution=[False, True, False, False])
    labels = tmp_path / "S0.tsv"
    kinds = ["malignant", "malignant", "boundary", "non-malignant", "undetermined"]
    write_tsv(pd.DataFrame({"barcode": list("abcde"), "label": kinds}), labels)
    risk = tmp_path / "risk.tsv"
    write_tsv(
        pd.DataFrame(
            {
                "patient": ["P1", "P2"],
                "risk_image": [1.5, -1.0],
                # By covariates and image together the two patients change places.
                "group": ["low", "high"],
                "group_image": ["high", "low"],
            }
        ),
        risk,
    )
    rows = cohort_rows(slides, predicted=predicted, labels={"S0": labels}, risks={"c": risk})
    rows = rows.set_index("slide")
    assert rows.loc["S0", "tumour"] == 0.75
    assert np.isnan(rows.loc["S1", "tumour"])
    assert rows.loc["S5", "tumour"] == 0.9
    assert rows.loc[["S2", "S3", "S4", "S5"], "risk"].tolist() == [1.5, 1.5, -1.0, -1.0]
    assert rows.loc[["S2", "S4"], "group"].tolist() == ["high", "low"]
    assert np.isnan(rows.loc["S0", "risk"])
    assert rows.loc["S3", "flags"] == "out of distribution"
    assert rows.loc["S4", "flags"] == "80% blurred"
    assert rows.loc["S2", "flags"] == ""


def test_columns_of_which_nothing_is_known_are_not_shown(tmp_path):
    page = draw(tmp_path, cohort_rows(slide_table()))
    assert [name for name, *_ in content(page)["columns"]] == [
        "slide",
        "patient",
        "cohort",
        "role",
        "n_tiles",
    ]


def test_a_risk_is_listed_with_its_score_and_null(tmp_path):
    path = tmp_path / "concordance.tsv"
    table = {"model": ["image"], "c_index": [0.7], "ci_low": [0.6], "ci_high": [0.8], "null": [0.5],
             "protocol": ["patient_cv"], "n": [24], "events": [19]}  # fmt: skip
    write_tsv(pd.DataFrame(table), path)
    (note,) = risk_notes({"c": path})
    assert "C-index 0.70 (0.60 to 0.80), null 0.50, 24 patients, 19 events" in note


def test_5000_slides_stay_below_14_mb(tmp_path):
    """With thumbnails of tissue, which pack worse than plain ones."""
    slides = slide_table(5000, sections=10)
    rows = cohort_rows(slides, predicted=predicted_table(slides))
    thumbnail = tmp_path / "thumbnail.jpg"
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(300, 400, 3)), (3, 3, 0))
    write_thumbnail((180 + 500 * noise).clip(0, 255).astype(np.uint8), thumbnail)
    page = tmp_path / "index.html"
    write_cohort_page(
        rows, page, study="s", thumbnails=dict.fromkeys(rows["slide"], thumbnail), pages=["S0"]
    )
    assert page.stat().st_size < 14e6


@needs_chromium
def test_the_list_is_sorted_searched_and_linked(tmp_path):
    slides = slide_table(230)
    slides.loc[3, "slide"] = HOSTILE
    rows = cohort_rows(slides, predicted=predicted_table(slides))
    with opened(draw(tmp_path, rows)) as page:
        page.wait("document.body.dataset.ready === 'yes'")
        names = "[...document.querySelectorAll('tbody tr')].map((r) => r.children[1].textContent)"
        assert page.ask(names)[:4] == ["S0", "S1", "S2", HOSTILE]
        assert len(page.ask(names)) == 100
        head = "[...document.querySelectorAll('th button')].find((b) => b.textContent.startsWith('tumour'))"
        place = f"(() => {{ const b = {head}.getBoundingClientRect(); return [b.left + 5, b.top + 5]; }})()"
        page.click(*page.ask(place))
        assert page.ask(names)[:2] == ["S229", "S228"]
        page.click(*page.ask(place))
        assert page.ask(names)[:2] == ["S2", HOSTILE]
        assert (
            page.ask("[...document.querySelectorAll('tbody a')].map((a) => a.getAttribute('href'))")
            == []
        )
        page.ask("(() => { const s = document.getElementById('search'); s.value = 'p0';"
                 "s.dispatchEvent(new Event('input')); })()")  # fmt: skip
        assert set(page.ask(names)) == {"S0", "S1"}
        assert page.ask("document.querySelector('tbody a').getAttribute('href')") == "S0.html"
        assert page.ask("document.querySelector('tbody img').naturalHeight") == 72
        assert page.ask("window.hacked === undefined")
        assert page.fetched == []
        assert page.complaints == []
