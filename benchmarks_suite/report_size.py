"""Size of report.html for a cohort of thousands of slides, from the files that it would hold.

Rows and figures are those of a finished study, repeated under other ids: the tables of all slides are
written as pages by the library, and the figures of the slides that `choose_figures` chooses are counted.
Half of the slides are flagged. A report holds each file in base64, four bytes for three.

    .venv/bin/python benchmarks_suite/report_size.py --slides 5000 --of FOLDER_OF_A_FINISHED_STUDY
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from histogep.files import read_json, read_tsv
from histogep.report.chosen_figures import KINDS, choose_slides
from histogep.report.cohort_page import cohort_rows, write_cohort_page
from histogep.report.pages import Table, write_page
from histogep.slides.reader import Slide
from histogep.slides.thumbnail import THUMBNAIL_PX, write_thumbnail

N_SECTIONS = 10
_BASE64 = 4 / 3


def repeated(table: pd.DataFrame, n: int, prefix: str) -> pd.DataFrame:
    """Return a table of n slides, the rows of another one again and again under new ids."""
    found = pd.concat([table] * -(-n // len(table)), ignore_index=True).iloc[:n].copy()
    found["like"] = found["slide"]
    found["slide"] = [f"{prefix}{i:05d}" for i in range(n)]
    return found


def main() -> None:
    """Print one row per kind of file: how many, MB as files, MB in the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=5000)
    parser.add_argument("--most", type=int, default=50, help="report.figures")
    parser.add_argument("--of", type=Path, required=True)
    given = parser.parse_args()
    results = given.of.resolve() / "results"
    text = dict.fromkeys(("slide", "patient", "cohort", "training_section"), str)
    listed = read_tsv(results / "slides.tsv", dtype=text)
    predicted = read_tsv(results / "predicted_slides.tsv", dtype=text)
    sections = repeated(listed[listed["role"] == "section"], N_SECTIONS, "T")
    others = repeated(
        listed[listed["slide"].isin(predicted["slide"])], given.slides - N_SECTIONS, "H"
    )
    slides = pd.concat([sections, others], ignore_index=True)
    maps = others[["slide", "like"]].merge(
        predicted.rename(columns={"slide": "like"}), on="like", how="left"
    )
    maps["out_of_distribution"] = [number % 2 == 0 for number in range(len(maps))]
    like = dict(zip(slides["slide"], slides["like"], strict=True))
    files: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        thumbnails = {}
        for slide in set(like.values()):
            # The pictures lie relative to the folder of the study.
            record = read_record(results / f"slides/{slide}.json", given.of.resolve())
            with record as opened:
                thumbnails[slide] = folder / f"{slide}.jpg"
                write_thumbnail(opened.picture(THUMBNAIL_PX), thumbnails[slide])
        rows = cohort_rows(slides, predicted=maps)
        page = folder / "index.html"
        of_each = {slide: thumbnails[one] for slide, one in like.items()}
        write_cohort_page(
            rows, page, study="cohort", thumbnails=of_each, pages=set(slides["slide"][:30])
        )
        for kind, table in (("slides.html", slides), ("predicted_slides.html", maps)):
            write_page(folder / kind, title=kind, tables=[Table(table.drop(columns="like"))])
            files[kind] = [(folder / kind).stat().st_size]
        files["slides_html/index.html"] = [page.stat().st_size]
    chosen = choose_slides(slides, maps, most=given.most)
    for kind in KINDS:
        found = [results / kind / f"{like[slide]}.png" for slide in chosen]
        files[f"report/{kind}"] = [path.stat().st_size for path in found if path.is_file()]
    of_section = ("spots/{}.png", "spots/quality/{}.png", "spots/quality/{}.tsv", "labels/{}.png")
    files["of sections"] = [
        (results / pattern.format(like[slide])).stat().st_size
        for slide, pattern in itertools.product(sections["slide"], of_section)
    ]
    slow = {f"{slide}.png" for slide in listed["slide"]}
    files["of cohorts and models"] = [
        path.stat().st_size
        for path in results.glob("**/*")
        if path.suffix in {".png", ".svg", ".html"}
        and path.name not in slow
        and path.name not in {"slides.html", "predicted_slides.html", "index.html"}
        and "slides_html" not in path.parts
    ]
    print("files\tn\tmb\tmb_in_report")
    for kind, sizes in files.items():
        print(
            kind,
            len(sizes),
            f"{sum(sizes) / 1e6:.2f}",
            f"{_BASE64 * sum(sizes) / 1e6:.2f}",
            sep="\t",
        )
    total = sum(map(sum, files.values()))
    print(
        "all",
        sum(map(len, files.values())),
        f"{total / 1e6:.1f}",
        f"{_BASE64 * total / 1e6:.1f}",
        sep="\t",
    )


def read_record(path: Path, folder: Path) -> Slide:
    """Return a slide of a study that runs in another folder than this program."""
    record = read_json(path)
    return Slide(
        slide=record["slide"], image=folder / record["image"], mpp=record["mpp"],
        width_px=record["width"], height_px=record["height"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
