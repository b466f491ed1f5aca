"""The out-of-distribution gate: its level for patients, and what it must flag."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from histogep.deployment.out_of_distribution import (
    LEVEL,
    TEXTURE,
    FeatureDistance,
    feature_columns,
    limits_of_tiles,
    patient_limits,
)
from histogep.encoders.descriptors import DESCRIPTOR_NAMES

CLAIM = Path(__file__).parents[2] / "benchmarks_suite" / "claims" / "out_of_distribution.py"


@pytest.fixture(scope="module")
def claim():
    return runpy.run_path(str(CLAIM))


@pytest.mark.parametrize("n", [3, 6])
def test_exchangeable_patients_with_strong_shifts_are_rarely_flagged(claim, n):
    """Leaving out slides flagged 81 to 99 % of them: the other slide of a patient is no stranger."""
    rng = np.random.default_rng([5, n])
    simulate = claim["simulate_study"]
    called = np.concatenate([simulate(rng, n, 10.0, 3, heavy=False) for _ in range(8)])
    out, tiles = called[..., 0] > 0, called[..., 1]
    assert out.any(1).mean() <= 0.15  # 40 patients at a level of .1
    # The limit of patients would call up to a quarter of their tiles out_of_distribution.
    assert tiles[~out].mean() <= 0.02


def training(rng, n_patients=4, d=60):
    texture = rng.normal(size=(8, d))

    def slide(shift):
        values = rng.normal(size=(80, 8)) @ texture + shift + 0.5 * rng.normal(size=(80, d))
        return np.hstack([values[:, :20], values[:, 20:]])

    shifts = [0.3 * rng.normal(size=d) for _ in range(n_patients)]
    slides = [slide(shift) for shift in shifts for _ in range(2)]
    patients = [str(number) for number in range(n_patients) for _ in range(2)]
    return slides, patients, slide


def test_few_columns_leave_more_over_than_rounding():
    """35 descriptors in 34 or 32 components leave next to nothing over, and any slide has more of that."""
    rng = np.random.default_rng(8)
    texture = rng.normal(size=(35, 35)) * np.exp(-0.25 * np.arange(35))[:, None]
    slides = [(rng.normal(size=(100, 35)) + rng.normal(size=35)) @ texture for _ in range(6)]
    fitted = FeatureDistance.fit(slides, patients=list("abcdef"), blocks=[("descriptors", 35)])
    for block, columns in zip(fitted.blocks, fitted.columns, strict=True):
        assert np.median(block.measures(slides[0][:, columns])[:, 1]) > 0.001


def test_descriptors_are_divided_by_colour_and_texture():
    assert [DESCRIPTOR_NAMES[column] for column in TEXTURE] == [
        name
        for name in DESCRIPTOR_NAMES
        if name.split("_")[0] in ("laplacian", "gradient", "nuclei", "glcm")
    ]
    columns = feature_columns([("lite0", 10), ("descriptors", 35), ("uni", 4)])
    assert sorted(np.concatenate(columns)) == list(range(49))
    assert [len(own) for own in columns] == [10, 35 - len(TEXTURE), len(TEXTURE), 4]


def test_patients_of_two_scanners_do_not_hide_another_stain():
    """The limits of texture are wide where a training patient was scanned otherwise, those of colour not."""
    rng = np.random.default_rng(4)
    texture = np.isin(np.arange(35), TEXTURE)

    def slide(sharp=0.0, stain=0.0):
        return rng.normal(size=(80, 35)) + np.where(texture, sharp, stain) * np.resize([1, -1], 35)

    slides = [slide(sharp) for sharp in (0, 0, 10)]
    fitted = FeatureDistance.fit(slides, patients=list("abc"), blocks=[("descriptors", 35)])
    joined = FeatureDistance.fit(slides, patients=list("abc"), blocks=[("any", 35)])
    assert fitted.judge(fitted.measure(slide(stain=5))).out
    assert not joined.judge(joined.measure(slide(stain=5))).out
    assert not fitted.judge(fitted.measure(slide())).out


def test_noise_white_and_shifted_tiles_are_distant():
    rng = np.random.default_rng(3)
    slides, patients, slide = training(rng)
    white = np.full(60, -1.0)
    blocks = [("descriptors", 20), ("lite0", 40)]
    fitted = FeatureDistance.fit(slides, patients=patients, blocks=blocks, white=white)

    def share(values):
        return fitted.judge(fitted.measure(values)).out_of_distribution.mean()

    pooled = np.concatenate(slides)
    assert share(slide(0.3 * rng.normal(size=60))) < 0.02
    assert share(pooled.mean(0) + pooled.std(0) * rng.normal(size=(50, 60))) > 0.9
    assert share(rng.normal(size=(50, 60)) * 10) == 1
    assert share(white[None]) == 1
    only = pooled[:50].copy()
    only[:, :20] += 15 * pooled.std(0)[:20]  # one block alone
    assert share(only) > 0.9


def test_limits_are_those_of_one_more_normal_value():
    rng = np.random.default_rng(0)
    passed = [
        np.log(patient_limits(rng.normal(0, 0.3, (n, 1)), level=LEVEL))[0] < rng.normal(0, 0.3)
        for n in (2, 3, 8)
        for _ in range(1500)
    ]
    assert np.mean(passed) == pytest.approx(LEVEL, abs=0.02)


def test_one_tile_in_a_hundred_of_new_patients_passes_the_limit_of_tiles():
    rng = np.random.default_rng(0)
    passed = []
    for n in (3, 8):
        for _ in range(150):
            patients, new = rng.normal(0, 0.3, (n, 1)), rng.normal(0, 0.3)
            if new > np.log(patient_limits(patients, level=LEVEL))[0]:
                continue
            within = rng.normal(0, 0.2, (n * 100, 1))
            limit = limits_of_tiles(patients, within, level=0.01, patient_level=LEVEL)
            passed.append((new + rng.normal(0, 0.2, 200) > np.log(limit)).mean())
    assert np.mean(passed) == pytest.approx(0.01, abs=0.006)


def test_a_slide_is_judged_by_the_median_of_each_measure():
    """Half of the tiles beyond some limit are not half of them beyond one."""
    rng = np.random.default_rng(6)
    slides, patients, _ = training(rng)
    fitted = FeatureDistance.fit(slides, patients=patients, blocks=[("x", 60)])
    near = np.full((100, 3), 0.5, np.float32)
    near[:3] = 1.01 * fitted.tile_limits
    near[3:40, 0] = near[40:80, 1] = 1.001
    judged = fitted.judge(near)
    assert not judged.out
    assert judged.median == pytest.approx(0.5)
    assert list(np.flatnonzero(judged.out_of_distribution)) == [0, 1, 2]
    assert (fitted.tile_limits > 1.01).all()
    near[40:80, 0] = 1.001
    judged = fitted.judge(near)
    assert judged.out
    assert judged.out_of_distribution.sum() == 80


def test_one_patient_gives_limits_and_order_does_not_matter():
    rng = np.random.default_rng(1)
    slides, patients, _ = training(rng)
    one = FeatureDistance.fit(slides[:1], patients=patients[:1], blocks=[("x", 60)])
    assert np.isfinite(one.blocks[0].limits).all()
    there = FeatureDistance.fit(slides, patients=patients, blocks=[("x", 60)])
    back = FeatureDistance.fit(slides[::-1], patients=patients[::-1], blocks=[("x", 60)])
    np.testing.assert_allclose(there.blocks[0].limits, back.blocks[0].limits, rtol=1e-6)


def test_the_limits_are_of_patients_and_not_of_slides():
    rng = np.random.default_rng(2)
    slides, _, _ = training(rng)
    # Two slides each of patients that differ much.
    slides = [part + 6 * (i // 2) for i, part in enumerate(slides)]
    by_patient = FeatureDistance.fit(slides, patients=list("aabbccdd"), blocks=[("x", 60)])
    by_slide = FeatureDistance.fit(slides, patients=list("abcdefgh"), blocks=[("x", 60)])
    assert by_patient.blocks[0].limits[1] > 1.5 * by_slide.blocks[0].limits[1]
