from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy import ndimage

from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.fit import fit_model
from histogep.models.network import lattice_fit
from histogep.models.network.lattice_fit import HANDS, deal_members, member_seeds
from histogep.models.predict import build_model
from histogep.models.sections import Section
from histogep.models.selection import section_score

torch.set_num_threads(1)
SIDE, N_GENES = 12, 10
GENES = [f"G{i}" for i in range(N_GENES)]
LATTICE = Lattice("visium").to_settings()
LIGHT = {"alphas": [0.01, 0.1], "ranks": [2, 0], "rings": 1}


def make_section(number, patient, *, seed=0):
    """A field that the features show through a stain of the slide, and genes that follow it."""
    rng = np.random.default_rng([seed, number])
    field = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1.5).ravel()
    field = ((field - field.mean()) / field.std())[:, None]
    row, col = (axis.ravel().astype(np.int32) for axis in np.indices((SIDE, SIDE)))
    features = field * np.linspace(-1, 1, 6) + rng.normal(size=6) + rng.normal(size=(len(row), 6))
    targets = 2 + field * np.linspace(-1, 1, N_GENES) + rng.normal(size=(len(row), N_GENES))
    return Section(
        slide=f"S{number}",
        patient=patient,
        barcode=np.array([f"B{i}" for i in range(len(row))]),
        row=row,
        col=col,
        features=features.astype(np.float32),
        white=np.zeros(6, np.float32),
        targets=targets.astype(np.float32),
        blocks=[("descriptors", 6)],
        encoders=[{"name": "descriptors"}],
        lattice=LATTICE,
    )


@pytest.fixture(autouse=True)
def short(monkeypatch):
    quick = functools.partial(lattice_fit.train_committee, steps=40, snapshots=(20, 40))
    monkeypatch.setattr(lattice_fit, "train_committee", quick)


def fit(sections, kind="blend", *, validation=(), seed=1, protocol="patient_cv"):
    return fit_model(
        {"train": sections, "validation": list(validation)}, name=kind,
        settings={"kind": kind, "task": "expression", "panel": "main", **LIGHT},
        protocol=protocol, fold="patient_cv-1", genes=GENES, seed=seed, published_grid=(16, 16),
        test={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def sections():
    return [make_section(i, patient) for i, patient in enumerate("PPQRS")]


@pytest.mark.parametrize(
    ("groups", "members", "predicting"),
    [("P", 2, 2), ("PQ", 4, 2), ("PQR", 5, 2), ("PQRS", 4, 4), ("PQRSTUVW", HANDS, HANDS)],
)
def test_no_member_sees_the_patients_it_is_judged_on(groups, members, predicting):
    """Nor a second section of theirs; each section judges one member, if there are two patients."""
    patients = list(groups + groups)
    sees, judged = deal_members(patients)
    assert len(sees) == len(judged) == members
    for own, out in zip(sees, judged, strict=True):
        assert not {patients[i] for i in own} & {patients[i] for i in out}
        assert sorted([*own, *out]) == list(range(len(patients)))
    judges = sorted(i for out in judged for i in out)
    assert judges == (list(range(len(patients))) if len(set(groups)) > 1 else [])
    all_seeing = [out for out in judged if not out]
    assert len(all_seeing or judged) == predicting


def test_a_blend_predicts_what_it_has_not_seen(sections):
    fitted = fit(sections[:4], validation=sections[4:])
    unseen = make_section(9, "Z")
    values, level = build_model(fitted.arrays, fitted.settings).predict(unseen.tiles)
    assert values.shape == unseen.targets.shape
    assert values.mean(0) == pytest.approx(level, abs=1e-4)
    assert section_score(values, unseen.targets) > 0.25
    record = fitted.settings
    assert 0 < record["choice"]["share"] < 1
    assert fitted.history["weight"].sum() == pytest.approx(1.0)
    assert record["validation_score"] == record["scores"]["expression"] > 0.2
    light = build_model(*(lambda f: (f.arrays, f.settings))(fit(sections, "neighbours")))
    assert level == pytest.approx(light.predict(unseen.tiles)[1])
    slides = [section.slide for section in sections]
    for what in ("scaler", "pca", "target", "programmes", "alpha", "share", "snapshot", "rank"):
        assert sorted(record[f"{what}_fitted_on"]) == slides


def test_a_share_of_nothing_is_the_light_head(sections, monkeypatch):
    """With all weight on the first candidate the blend predicts what `neighbours` does."""

    def none(scores, groups, found):
        return np.eye(len(found))[0], 0.01

    monkeypatch.setattr(lattice_fit.blend, "weigh", none)
    fitted, light = fit(sections), fit(sections, "neighbours")
    unseen = make_section(9, "Z")
    mixed = build_model(fitted.arrays, fitted.settings).predict(unseen.tiles)[0]
    alone = build_model(light.arrays, light.settings).predict(unseen.tiles)[0]
    assert mixed == pytest.approx(alone, abs=1e-5)
    assert fitted.settings["choice"]["share"] == 0.0
    assert fitted.settings["validation_score"] == pytest.approx(
        light.settings["validation_score"], abs=1e-6
    )


@pytest.mark.parametrize("kind", ["lattice", "blend"])
def test_the_same_seed_gives_the_same_bytes(sections, kind):
    one, two = fit(sections, kind), fit(sections, kind)
    assert one.arrays.keys() == two.arrays.keys()
    assert all(array.tobytes() == two.arrays[name].tobytes() for name, array in one.arrays.items())
    assert one.settings == two.settings
    assert one.history.equals(two.history)
    assert member_seeds(1, 5)[:3] == member_seeds(1, 3) != member_seeds(2, 3)


def test_what_a_left_out_patient_shows_changes_nothing_of_its_member(sections, monkeypatch):
    """Its counts are changed: member, light head and programmes that judge it stay as they are."""
    kept = []

    def watch(ready, section, group, trained, member, light):
        found = left_out(ready, section, group, trained, member, light)
        kept.append((section.slide, member, found))
        return found

    left_out = lattice_fit._left_out
    monkeypatch.setattr(lattice_fit, "_left_out", watch)
    fit(sections)
    before, kept[:] = list(kept), []
    changed = make_section(3, "R", seed=5)
    changed.features = sections[3].features
    fit([*sections[:3], changed, sections[4]])
    assert len(before) == len(kept) == 5
    for (slide, member, ours), (_, _, theirs) in zip(before, kept, strict=True):
        same = (ours.programmes == theirs.programmes).all() and (ours.light == theirs.light).all()
        assert same == (slide == "S3"), (slide, member)
        assert (ours.decoder == theirs.decoder).all() == (slide == "S3")


def test_counts_that_mean_nothing_give_nothing():
    """Counts permuted over the spots of each section: no correlation with a held-out patient."""
    scores = []
    for draw in range(3):
        rng = np.random.default_rng(draw)
        sections = [make_section(i, f"P{i}", seed=draw) for i in range(5)]
        for section in sections:
            section.targets = rng.permutation(section.targets, axis=0)
        fitted = fit(sections)
        unseen = make_section(9, "Z", seed=draw)
        unseen.targets = rng.permutation(unseen.targets, axis=0)
        values, _ = build_model(fitted.arrays, fitted.settings).predict(unseen.tiles)
        scores.append(section_score(values, unseen.targets))
    # Of 144 spots with one programme shared by all genes, one r has a deviation of .08.
    assert abs(np.mean(scores)) < 0.14


@pytest.mark.parametrize("n_sections", [1, 2])
def test_one_patient_is_enough_to_fit_and_too_few_to_judge(n_sections):
    sections = [make_section(i, "P") for i in range(n_sections)]
    fitted = fit(sections)
    assert fitted.settings["validation_score"] is None
    assert fitted.settings["scores"] == {}
    assert fitted.settings["choice"]["share"] == pytest.approx(0.5)
    assert fitted.settings["share_fitted_on"] == []
    values, _ = build_model(fitted.arrays, fitted.settings).predict(sections[0].tiles)
    assert np.isfinite(values).all()


def test_neither_maps_tumours(sections):
    settings = {"kind": "blend", "task": "tumour", "panel": "main"}
    label = [make_section(i, p) for i, p in enumerate("PQRS")]
    for section in label:
        section.targets = (section.targets[:, :1] > 2).astype(np.float32)
    with pytest.raises(InputError, match="blend cannot predict tumour; use cmunet, or neighbours"):
        fit_model(
            {"train": label}, name="b", settings=settings, protocol="patient_cv", fold="f",
            genes=[], seed=1, published_grid=(16, 16), test={},
        )  # fmt: skip
