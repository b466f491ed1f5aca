from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, sparse

from histogep.lattice import Lattice
from histogep.models.lattice import run_networks
from histogep.models.network.committee import ring_table
from histogep.models.network.lattice_train import (
    LatticeSection,
    find_programmes,
    rate_at,
    train_committee,
    z_scores,
)
from histogep.models.selection import section_score

torch.set_num_threads(1)
SIDE, LATTICE = 14, Lattice("visium")
SHORT = {"steps": 60, "snapshots": (30, 60)}


def make_section(seed, n_genes=12, share=0.9):
    """A field that two features show through noise, and genes that follow it."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2.0).ravel()
    row, col = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    kept = np.sort(rng.permutation(SIDE * SIDE)[: int(share * SIDE * SIDE)])
    field = ((field - field.mean()) / field.std())[kept, None]
    features = field * [1.0, -1.0, 0.0, 0.5] + rng.normal(size=(len(kept), 4))
    effect = np.linspace(-1, 1, n_genes)
    targets = 2 + field * effect + 0.5 * rng.normal(size=(len(kept), n_genes))
    table = ring_table(LATTICE, row[kept], col[kept])
    return LatticeSection(features.astype(np.float32), table, targets.astype(np.float32))


SECTIONS = [make_section(i, share=0.7 + 0.1 * i) for i in range(3)]
SEES, SEEDS = [[0, 1], [1, 2], [0, 1, 2]], [11, 12, 13]


@pytest.fixture(scope="module")
def together():
    return train_committee(SECTIONS, SEES, seeds=SEEDS, **SHORT)


@pytest.mark.parametrize("member", range(3))
def test_a_member_ends_as_it_would_alone(together, member):
    """Sections have 137 to 176 spots, so that the batch is filled up for two of the members."""
    alone = train_committee(SECTIONS, [SEES[member]], seeds=[SEEDS[member]], **SHORT)
    for ours, theirs in zip(alone.snapshots, together.snapshots, strict=True):
        for name, array in ours.items():
            assert np.abs(array[0] - theirs[name][member]).max() < 1e-5, name
    other = together.snapshots[-1]["first_weight"]
    assert np.abs(other[0] - other[1]).max() > 0.01


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(together):
    again = train_committee(SECTIONS, SEES, seeds=SEEDS, **SHORT)
    for ours, theirs in zip(again.snapshots, together.snapshots, strict=True):
        assert all((array == theirs[name]).all() for name, array in ours.items())
    other = train_committee(SECTIONS, SEES, seeds=[1, 2, 3], **SHORT)
    assert (other.snapshots[1]["back_weight"] != together.snapshots[1]["back_weight"]).any()


def test_what_a_member_does_not_see_changes_nothing_of_it(together):
    """Neither its weights nor its programmes; those of the others change."""
    rng = np.random.default_rng(0)
    first = SECTIONS[0]
    changed = LatticeSection(
        first.features, first.table, rng.permutation(first.targets, axis=0) * 3
    )
    again = train_committee([changed, *SECTIONS[1:]], SEES, seeds=SEEDS, **SHORT)
    for ours, theirs in zip(again.snapshots, together.snapshots, strict=True):
        for name, array in ours.items():
            assert (array[1] == theirs[name][1]).all(), name
    assert (again.programmes[1].decoder == together.programmes[1].decoder).all()
    assert np.abs(again.programmes[2].decoder - together.programmes[2].decoder).max() > 1e-3
    last = [part.snapshots[-1]["first_weight"][2] for part in (again, together)]
    assert np.abs(last[0] - last[1]).max() > 1e-3


def test_it_learns_what_it_has_not_seen(together):
    unseen = make_section(20)
    weights = {name: array[2:] for name, array in together.snapshots[-1].items()}
    n = len(unseen.table)
    touching = np.zeros((n, n))
    for i, own in enumerate(unseen.table):
        touching[i, own[own < n]] = 1.0
    ring = sparse.csr_matrix(touching / touching.sum(1, keepdims=True), dtype=np.float32)
    said = run_networks(weights, unseen.features, ring)[0]
    own = section_score(said @ together.programmes[2].decoder, unseen.targets)
    linear = np.linalg.lstsq(SECTIONS[0].features, z_scores(SECTIONS[0].targets), rcond=None)[0]
    assert own > 0.35
    # One tile alone cannot say as much as a tile and its ring.
    assert own > section_score(unseen.features @ linear, unseen.targets)


def test_programmes_are_the_leading_directions_of_z_scored_genes():
    """Against a singular value decomposition; a gene that does not vary is predicted constant."""
    targets = [section.targets for section in SECTIONS]
    found = find_programmes(targets, most=3)
    stacked = np.vstack([z_scores(part) for part in targets])
    _, values, axes = np.linalg.svd(stacked, full_matrices=False)
    assert np.abs((found.axes * axes[:3].T).sum(0)) == pytest.approx(1.0)
    assert found.scale == pytest.approx(values[0] / np.sqrt(len(stacked)))
    back = found.scores(targets[0]) @ find_programmes(targets, most=12).decoder[:3]
    assert section_score(back, targets[0]) > 0.6
    flat = np.column_stack([targets[0], np.full(len(targets[0]), 3.0)])
    assert find_programmes([flat], most=3).decoder[:, -1] == pytest.approx(0.0)


def test_the_rate_warms_up_and_falls_to_a_twentieth():
    rates = [rate_at(step, 240) for step in range(1, 241)]
    assert rates[0] == pytest.approx(1 / 20)
    assert max(rates) == rates[19] == 1.0
    assert rates[-1] == pytest.approx(0.05)
    assert np.all(np.diff(rates[19:]) <= 0)
