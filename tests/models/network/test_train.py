from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from histogep.encoders.precision import autocast, determinism, memory_format_of
from histogep.errors import InputError
from histogep.lattice import Lattice
from histogep.models.network.data import NetworkSection, Resident, assemble, grids_of
from histogep.models.network.losses import Loss, correlation_of
from histogep.models.network.train import TrainingSettings, _cosine, train_network
from histogep.models.selection import section_score

torch.set_num_threads(1)
LATTICE = Lattice("visium")
SMALL = TrainingSettings(
    channels=(8, 8, 12, 12, 16), blocks=1, kernel=3, epochs=12, min_steps=0, batch=2,
    precision="float32",
)  # fmt: skip
SIDE = 20


def make_section(seed, *, patient="P", task="expression", share=0.9):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 2.0)
    field = ((field - field.mean()) / field.std()).ravel()
    row, col = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    kept = np.sort(rng.permutation(SIDE * SIDE)[: int(share * SIDE * SIDE)])
    field, row, col = field[kept], row[kept], col[kept]
    features = field[:, None] * [1.0, -1.0, 0.5] + rng.normal(size=(len(kept), 3))
    if task == "expression":
        targets = field[:, None] * [0.6, -0.4] + [2.0, 1.0] + 0.2 * rng.normal(size=(len(kept), 2))
    else:
        targets = (field > 0.3).astype(float)[:, None]
        targets[rng.random(len(kept)) < 0.2] = np.nan
    background = np.zeros(3, np.float32)
    features, targets = features.astype(np.float32), targets.astype(np.float32)
    return NetworkSection(patient, row, col, features, targets, background)


def train(task="expression", settings=SMALL, seed=0, validation=2, **options):
    sections = [make_section(i, task=task) for i in range(4)]
    judges = [make_section(9 + i, patient=f"V{i}", task=task) for i in range(validation)]
    return train_network(
        sections, judges, task=task, lattice=LATTICE, settings=settings, seed=seed, **options
    )


def test_the_net_learns_and_the_best_epoch_is_kept():
    trained = train()
    history = trained.history
    assert list(history["epoch"]) == list(range(1, 13))
    assert history["train_loss"].iloc[-1] < 0.7 * history["train_loss"].iloc[0]
    assert trained.score > 0.6
    assert trained.score == history["validation_score"].max()
    assert trained.best_epoch == history["validation_score"].idxmax() + 1
    assert not trained.network.training


def test_the_kept_weights_give_the_recorded_score():
    trained = train()
    scores = []
    for i in range(2):
        section = make_section(9 + i)
        item = Resident(section, grids_of([section], LATTICE, None, symmetries=False)[0],
                         (trained.target_mean, trained.target_sd), "cpu")  # fmt: skip
        cells = item.grids[0]
        with torch.inference_mode():
            output = trained.network(item.features[cells].permute(2, 0, 1)[None])[0]
        output = output.permute(1, 2, 0).numpy()[section.row, section.col]
        predicted = output * trained.target_sd + trained.target_mean
        scores.append(section_score(predicted, section.targets))
    assert np.mean(scores) == pytest.approx(trained.score, abs=1e-5)


def test_the_tumour_map_is_learned_from_labelled_spots_only():
    trained = train("tumour")
    assert trained.score > 0.8
    assert np.isfinite(trained.history["train_loss"]).all()


def test_two_runs_are_the_same_and_the_seed_counts():
    first, second, other = train(), train(), train(seed=1)
    assert first.history.equals(second.history)
    for mine, same in zip(
        first.network.state_dict().values(), second.network.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, same)
    assert not first.history.equals(other.history)


def test_the_paper_protocol_has_no_validation_and_runs_all_epochs():
    trained = train(validation=0, whole_grid=(32, 32))
    assert trained.best_epoch == 12
    assert np.isnan(trained.score)
    assert trained.history["validation_score"].isna().all()
    # Targets keep their own units and the background is 0, so the mean level must be learned.
    assert (trained.target_mean == 0).all()
    assert (trained.target_sd == 1).all()


def test_stopping_early_does_not_change_the_schedule():
    full, short = train(validation=0), train(validation=0, stop_after=5 / 12)
    assert short.best_epoch == 5
    assert short.passes == full.passes == 12
    assert short.history.equals(full.history.iloc[:5])


def test_few_sections_are_passed_over_more_often():
    """Four sections are two steps: 30 steps are 15 epochs, and the rate falls over all of them."""
    settings = replace(SMALL, epochs=3, min_steps=30)
    assert [settings.passes(n) for n in (1, 2, 3, 4, 20, 200)] == [30, 30, 15, 15, 3, 3]
    history = train(settings=settings, validation=0).history
    assert len(history) == 15
    assert history["lr"].iloc[0] == settings.lr
    assert history["lr"].iloc[7] == pytest.approx(settings.lr * 0.55, rel=0.05)
    assert replace(settings, min_steps=0).passes(4) == 3
    assert TrainingSettings().passes(3) == 800


def test_the_learning_rate_falls_as_a_cosine():
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=SMALL.lr), 12, eta_min=1e-5
    )
    for epoch in range(12):
        assert _cosine(epoch, 12, SMALL) == pytest.approx(reference.get_last_lr()[0])
        reference.optimizer.step()
        reference.step()


def test_background_and_unknown_labels_have_no_say_in_the_honest_loss():
    section = make_section(0, task="tumour")
    scale = (np.zeros(1, np.float32), np.ones(1, np.float32))
    grids = grids_of([section], LATTICE, None, symmetries=False)[0]
    item = Resident(section, grids, scale, "cpu")
    loss = Loss("tumour", whole=False, correlation=0.0)
    _, cells = assemble([item], (32, 32), np.random.default_rng(0), 0.0)
    output = torch.randn(1, 1, 32, 32)
    value = loss(output, [item], cells)
    truth = item.targets[cells[0], 0]
    unknown = (cells[0] == item.n) | torch.isnan(truth)
    output[0, 0][unknown] = 99.0
    assert torch.equal(loss(output, [item], cells), value)
    known = ~unknown
    expected = torch.nn.functional.binary_cross_entropy(output[0, 0][known].sigmoid(), truth[known])
    assert value == pytest.approx(float(expected), abs=1e-6)
    whole = Loss("tumour", whole=True, correlation=0.0)
    assert whole(output, [item], cells) > 10  # the background must be called tumour-free


def test_the_correlation_term_is_the_mean_correlation():
    a, b = torch.randn(2, 50, 3)
    expected = [np.corrcoef(a[:, j], b[:, j])[0, 1] for j in range(3)]
    assert float(correlation_of(a, b)) == pytest.approx(np.mean(expected), abs=1e-5)
    section = make_section(0)
    grids = grids_of([section], LATTICE, None, symmetries=False)[0]
    item = Resident(section, grids, (np.zeros(2, np.float32), np.ones(2, np.float32)), "cpu")
    _, cells = assemble([item], (32, 32), np.random.default_rng(0), 0.0)
    perfect = item.targets[cells].permute(0, 3, 1, 2)
    assert float(Loss("expression", whole=False, correlation=1.0)(perfect, [item], cells)) < 1e-5


def test_both_tasks_share_a_loss_and_unknown_labels_have_no_say_in_it():
    """The sum of the two tasks' own losses; a section without labels gives expression only."""
    section = make_section(0)
    label = make_section(0, task="tumour").targets
    section.targets = np.hstack([section.targets, label]).astype(np.float32)
    grids = grids_of([section], LATTICE, None, symmetries=False)[0]
    scale = (np.zeros(3, np.float32), np.ones(3, np.float32))
    output = torch.randn(1, 3, 32, 32)

    def loss_of(task, columns):
        import dataclasses

        part = dataclasses.replace(section, targets=section.targets[:, columns])
        item = Resident(part, grids, (scale[0][columns], scale[1][columns]), "cpu")
        _, cells = assemble([item], (32, 32), np.random.default_rng(0), 0.0)
        loss = Loss(task, whole=False, correlation=0.5)
        return float(loss(output[:, columns], [item], cells))

    genes, tumour, everything = slice(0, 2), slice(2, 3), slice(0, 3)
    separate = loss_of("expression", genes) + loss_of("tumour", tumour)
    assert loss_of("both", everything) == pytest.approx(separate, rel=1e-6)
    section.targets[:, 2] = np.nan
    assert loss_of("both", everything) == pytest.approx(loss_of("expression", genes), rel=1e-6)


def test_float32_on_a_cpu_lies_channels_first():
    assert memory_format_of("float32", "cpu") == torch.contiguous_format
    assert memory_format_of("bfloat16", "cpu") == torch.channels_last
    assert memory_format_of("float32", "cuda") == torch.channels_last


def test_turned_sections_keep_their_neighbours():
    section = make_section(0)
    (grids,) = grids_of([section], LATTICE, None, symmetries=True)
    assert len(grids) > 1
    before = LATTICE.neighbours(section.row, section.col)
    for grid in grids:
        place = np.argwhere(grid.tissue)
        place = place[np.argsort(grid.index[grid.tissue])]
        assert (LATTICE.neighbours(*place.T) != before).nnz == 0


def test_hidden_features_are_hidden_over_the_whole_section():
    section = make_section(0)
    item = Resident(section, grids_of([section], LATTICE, None, symmetries=False)[0],
                     (np.zeros(2, np.float32), np.ones(2, np.float32)), "cpu")  # fmt: skip
    grid, _ = assemble([item], (32, 32), np.random.default_rng(1), 0.5)
    plain, _ = assemble([item], (32, 32), np.random.default_rng(1), 0.0)
    ratio = [float(grid[0, c].sum() / plain[0, c].sum()) for c in range(3)]
    assert all(value == pytest.approx(0) or value == pytest.approx(2, rel=1e-4) for value in ratio)
    assert len({round(value) for value in ratio}) == 2


def test_bfloat16_follows_float32():
    import dataclasses

    half = train(settings=dataclasses.replace(SMALL, precision="bfloat16"))
    full = train()
    assert half.history["train_loss"].iloc[-1] == pytest.approx(
        full.history["train_loss"].iloc[-1], rel=0.15
    )
    assert half.score == pytest.approx(full.score, abs=0.05)
    with autocast("bfloat16", "cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_a_single_class_and_strange_settings_are_refused():
    section = make_section(0, task="tumour")
    section.targets[:] = 1.0
    with pytest.raises(InputError, match="both malignant and non-malignant"):
        train_network([section], [], task="tumour", lattice=LATTICE, settings=SMALL, seed=0)
    for options in (
        {"epochs": 0},
        {"min_steps": -1},
        {"feature_dropout": 1.0},
        {"precision": "half"},
    ):
        with pytest.raises(InputError, match=next(iter(options))):
            TrainingSettings(**options)


def test_divergence_is_said_so():
    import dataclasses

    with pytest.raises(InputError, match="diverged.*lower lr"):
        train(settings=dataclasses.replace(SMALL, lr=float("inf")))


def test_determinism_is_restored():
    before = torch.are_deterministic_algorithms_enabled()
    with determinism(1, "cpu"):
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled() == before
