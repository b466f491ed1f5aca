"""The interactive page of a slide: small, whole, the same twice, and clicked in a real browser."""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from histogep.report.slide_layers import Layer, SlideLayers
from histogep.report.slide_page import IMAGE_PX, write_slide_page
from tests.chromium import needs_chromium, opened

HOSTILE = "</script><img src=x onerror=window.hacked=1><b>\"'&@@BOKEH@@{safe}"


def layers(n=400, *, n_genes=2, maps=2, name="S1", gene="ERBB2", seed=0):
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(n)))
    place = np.arange(n)
    centres = np.column_stack([place % side, place // side]) * 100.0 + 60.0
    kinds = np.where(centres[:, 0] < 50 * side, "malignant", "stroma").astype(object)
    kinds[0] = ""
    values = rng.normal(2, 1, (n_genes, maps, n))
    values[:, 0, 0] = np.nan
    found = [Layer("class", "Tumour", (kinds,) + (None,) * (maps - 1),
                   colours={"malignant": "#D55E00", "stroma": "#E69F00"})]  # fmt: skip
    found += [
        Layer(f"{gene}{number or ''}", "Genes", tuple(part), unit="log1p", half_width=0.5,
              about={"held-out r": "0.60", "null, 95 %": "0.10", "ceiling": "0.80"})
        for number, part in enumerate(values)
    ]  # fmt: skip
    found.append(Layer("signed", "Programmes", (values[0, 0],) * maps, diverging=True))
    shown = ("measured", "predicted, patient held out")[:maps] if maps == 2 else ("predicted",)
    return SlideLayers(name, 0.5, [f"{name}-{i}" for i in place], centres, (80.0, 80.0), maps == 2,
                       shown, tuple(found), ("A note.",))  # fmt: skip


def tissue(side=600):
    noise = ndimage.gaussian_filter(
        np.random.default_rng(1).normal(size=(side, side, 3)), (1, 1, 0)
    )
    return (np.array([190, 140, 180]) + 120 * noise).clip(0, 255).astype(np.uint8)


def draw(path, *, picture=None, **options):
    given = layers(**options)
    size = np.ptp(given.centres_px, axis=0) + 120
    write_slide_page(given, tissue() if picture is None else picture, path, size_px=tuple(size))
    return given


def content(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(
        re.search(r'<script type="application/json" id="content">(.*?)</script>', text)[1]
    )


def test_a_page_of_4000_tiles_and_50_genes_is_below_8_mb(tmp_path):
    """With an image as large as it gets, as textured as tissue."""
    path = tmp_path / "S1.html"
    draw(path, picture=tissue(IMAGE_PX), n=4000, n_genes=65, maps=1)
    assert path.stat().st_size < 8e6
    draw(path, picture=tissue(IMAGE_PX), n=4000, n_genes=65, maps=2)
    assert path.stat().st_size < 8e6


def test_values_come_out_as_they_went_in(tmp_path):
    path = tmp_path / "S1.html"
    given = draw(path)
    gene = next(one for one in content(path)["layers"] if one["name"] == "ERBB2")
    for part, values in zip(gene["parts"], given.layers[1].values, strict=True):
        whole = np.frombuffer(base64.b64decode(part["data"]), "<u2")
        decoded = np.where(whole == 65535, np.nan, part["low"] + whole * part["step"])
        np.testing.assert_allclose(decoded, values, atol=np.ptp(values[1:]) / 130_000)
    classes = content(path)["layers"][0]
    assert classes["codes"][1] is None
    codes = np.frombuffer(base64.b64decode(classes["codes"][0]), "<u2")
    assert codes[0] == 65535
    assert [classes["names"][code] for code in codes[1:]] == list(given.layers[0].values[0][1:])


def test_the_image_is_the_slide(tmp_path):
    path = tmp_path / "S1.html"
    draw(path)
    packed = re.search(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", path.read_text())[1]
    (tmp_path / "S1.jpg").write_bytes(base64.b64decode(packed))
    shown = np.asarray(Image.open(tmp_path / "S1.jpg"), int)
    assert shown.shape == tissue().shape
    assert np.abs(shown - tissue()).mean() < 15
    assert np.abs(shown[::-1] - tissue()).mean() > 25


def test_a_slide_gives_the_same_bytes_twice(tmp_path):
    here = str(Path(__file__).resolve().parents[2])
    for name in ("a", "b"):
        script = (
            f"import sys; sys.path.insert(0, {here!r})\n"
            "from pathlib import Path; from tests.report.test_slide_page import draw\n"
            f"draw(Path({str(tmp_path / name)!r}))"
        )
        subprocess.run([sys.executable, "-c", script], check=True, cwd=here)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_names_cannot_become_code(tmp_path):
    path = tmp_path / "S1.html"
    draw(path, name=HOSTILE, gene=HOSTILE)
    text = path.read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert text.count("</script>") == 4
    assert content(path)["slide"] == HOSTILE


@needs_chromium
def test_the_menu_colours_the_places_and_nothing_is_fetched(tmp_path):
    path = tmp_path / "S1.html"
    draw(path)
    with opened(path) as page:
        page.wait("document.body.dataset.ready === 'yes'")

        def colours(number):
            return page.ask(
                f"Array.from(Bokeh.documents[0].get_model_by_name('places-{number}').data.colour)"
            )

        def choose(name):
            page.ask(
                "(() => { const menu = document.getElementById('layer');"
                f"menu.value = [...menu.options].find((o) => o.textContent === {name!r}).value;"
                "menu.dispatchEvent(new Event('change')); })()"
            )
            page.wait(f"document.body.dataset.layer === {name!r}")

        assert set(colours(0)[1:]) == {"#D55E00", "#E69F00"}
        assert set(colours(1)) == {"#00000000"}
        page.screenshot(tmp_path / "classes.png")
        choose("ERBB2")
        assert colours(0)[0] == "#00000000"
        assert len(set(colours(0))) > 50
        assert len(set(colours(1))) > 50
        assert colours(0) != colours(1)
        before = colours(0)
        page.ask("(() => { const e = document.getElementById('low'); e.value = -50;"
                 "e.dispatchEvent(new Event('change')); })()")  # fmt: skip
        assert colours(0) != before
        page.screenshot(tmp_path / "gene.png")
        drawn = [
            np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB"), int)
            for n in ("classes", "gene")
        ]
        assert (np.abs(drawn[0] - drawn[1]).max(axis=2) > 20).mean() > 0.05
        # Both maps move together.
        page.ask("Bokeh.documents[0].get_model_by_name('map-0').x_range.setv({start: 1, end: 2})")
        assert page.ask("Bokeh.documents[0].get_model_by_name('map-1').x_range.start") == 1
        value = page.ask("Bokeh.documents[0].get_model_by_name('places-1').data.interval[5]")
        assert re.fullmatch(r"[\d.e-]+ to [\d.e-]+", value)
        about = page.ask("Bokeh.documents[0].get_model_by_name('places-1').data.about[5]")
        assert about == "held-out r: 0.60; null, 95 %: 0.10; ceiling: 0.80"
        assert page.fetched == []
        assert page.complaints == []


@needs_chromium
def test_hostile_names_are_shown_as_text(tmp_path):
    path = tmp_path / "S1.html"
    draw(path, n=4, name=HOSTILE, gene=HOSTILE)
    with opened(path) as page:
        page.wait("document.body.dataset.ready === 'yes'")
        assert HOSTILE in page.ask("document.querySelector('h1').textContent")
        page.ask("(() => { const menu = document.getElementById('layer'); menu.value = '1';"
                 "menu.dispatchEvent(new Event('change')); })()")  # fmt: skip
        box = page.ask("(() => { const b = document.getElementById('maps').getBoundingClientRect();"
                       "return [b.left, b.top, b.width, b.height]; })()")  # fmt: skip
        found = (
            "(() => { const text = []; const walk = (n) => { if (n.shadowRoot) walk(n.shadowRoot);"
            "if (n.nodeType === 3) text.push(n.textContent); n.childNodes.forEach(walk); };"
            "document.body.childNodes.forEach((n) => n.nodeName === 'SCRIPT' || walk(n)); return text.join(' '); })()"
            f".includes({json.dumps(HOSTILE + '-')})"
        )
        # Over the map until the tooltip of a place comes up.
        points = [(x, y) for x in np.linspace(0.1, 0.45, 12) for y in np.linspace(0.2, 0.8, 8)]
        for x, y in points:
            page.move(box[0] + x * box[2], box[1] + y * box[3])
            page.ask("new Promise((done) => setTimeout(done, 50))")
            if page.ask(found):
                break
        assert page.ask(found)
        assert page.ask("window.hacked === undefined")
        assert page.fetched == []
        assert page.complaints == []


def test_a_layer_of_one_value_or_of_none_is_drawn(tmp_path):
    given = layers()
    flat = Layer("flat", "Genes", (np.ones(400), np.full(400, np.nan)))
    whole = SlideLayers(**{**vars(given), "layers": (flat,)})
    write_slide_page(whole, tissue(), tmp_path / "S1.html", size_px=(2000, 2000))
    (one,) = content(tmp_path / "S1.html")["layers"]
    assert one["limits"][1] > one["limits"][0]
    assert one["parts"][1] is None


@pytest.mark.parametrize("maps", [1, 2])
def test_maps_show_the_places_first_in_true_proportions(tmp_path, maps):
    given = layers(maps=maps)
    # Far right of a wide slide.
    given = SlideLayers(**{**vars(given), "centres_px": given.centres_px + (30_000, 1000)})
    write_slide_page(given, tissue(), tmp_path / "S1.html", size_px=(40_000, 9000))
    item = re.search(r'id="item">(.*?)</script>', (tmp_path / "S1.html").read_text())[1]
    ranges = re.findall(r'"attributes":{"start":([\d.]+),"end":([\d.]+)}', item)
    (left, right), (bottom, top) = (map(float, pair) for pair in ranges[:2])
    mm = given.mpp / 1000
    assert left < given.centres_px[:, 0].min() * mm < given.centres_px[:, 0].max() * mm < right
    assert top < given.centres_px[:, 1].min() * mm < given.centres_px[:, 1].max() * mm < bottom
    assert right - left < 0.2 * 40_000 * mm
    sizes = re.findall(r'"frame_width":(\d+),"frame_height":(\d+)', item)
    assert len(sizes) == maps
    for width, height in sizes:
        assert abs(int(width) / int(height) / ((right - left) / (bottom - top)) - 1) < 0.02
