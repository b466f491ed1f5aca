from __future__ import annotations

import numpy as np
import pytest
import torch

from histogep.lattice import Lattice
from histogep.models.lattice import network_shapes, ring_matrix, run_networks
from histogep.models.network.committee import Committee, _RingMean, ring_table
from histogep.models.preparation import neighbour_mean

torch.set_num_threads(1)


def scattered(seed=0, n=60, side=10):
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.sort(rng.permutation(side * side)[:n]), side)
    # One position that touches no other.
    return np.append(row, side + 20), np.append(col, side + 20)


@pytest.mark.parametrize("kind", ["visium", "st"])
def test_the_mean_over_the_ring_is_that_of_the_preparation(kind):
    """Against the sparse matrix of `histogep.models.preparation`, the position alone included."""
    lattice, (row, col) = Lattice(kind), scattered()
    values = np.random.default_rng(1).normal(size=(len(row), 5))
    table = torch.as_tensor(ring_table(lattice, row, col))
    degree = (table < len(row)).sum(1, keepdim=True)
    mean = _RingMean.apply(torch.as_tensor(values), table, 1.0 / degree.double())
    assert ring_matrix(lattice, row, col) @ values == pytest.approx(mean.numpy(), abs=1e-6)
    assert mean.numpy() == pytest.approx(neighbour_mean(values, row, col, lattice), abs=1e-12)


def test_the_gradient_of_the_ring_mean_is_that_of_small_steps():
    row, col = scattered(n=20, side=6)
    table = torch.as_tensor(ring_table(Lattice("visium"), row, col))
    share = 1.0 / (table < len(row)).sum(1, keepdim=True).double()
    values = torch.randn(len(row), 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: _RingMean.apply(v, table, share), (values,))


def test_each_network_of_a_committee_is_one_alone():
    """Other networks, and positions that fill up the batch, change nothing."""
    row, col = scattered()
    n, table = len(row), ring_table(Lattice("visium"), row, col)
    committee = Committee(3, 7, 4)
    committee.initialise([torch.Generator().manual_seed(k) for k in range(3)])
    with torch.no_grad():
        committee.last_weight.normal_()
        for name in ("inner_scale", "inner_shift", "outer_scale"):
            committee.get_parameter(name).add_(0.3 * torch.randn(3, 1, 64))
    features = torch.randn(3, n + 5, 7)
    whole = torch.full((3 * (n + 5), 6), 3 * (n + 5))
    for k in range(3):
        first = k * (n + 5)
        own = torch.as_tensor(table)
        whole[first : first + n] = torch.where(own < n, own + first, 3 * (n + 5))
    together = committee(features, whole)[:, :n]
    for k in range(3):
        alone = Committee(1, 7, 4)
        alone.load_state_dict({name: p[k : k + 1] for name, p in committee.named_parameters()})
        output = alone(features[k : k + 1, :n], torch.as_tensor(table))
        assert torch.allclose(output[0], together[k], atol=1e-5)
        # As it is applied, without torch.
        weights = {name: p.detach().numpy() for name, p in alone.named_parameters()}
        said = run_networks(weights, features[k, :n], ring_matrix(Lattice("visium"), row, col))
        assert said[0] == pytest.approx(output[0].detach().numpy(), abs=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_a_network_has_the_declared_tensors_and_begins_at_nothing():
    committee = Committee(2, 9, 3)
    committee.initialise([torch.Generator().manual_seed(5)] * 2)
    shapes = {name: tuple(p.shape) for name, p in committee.named_parameters()}
    assert shapes == network_shapes(committee.architecture)
    output = committee(torch.randn(2, 4, 9), torch.full((8, 6), 8))
    assert output.abs().max() == 0
    assert committee.first_weight.std() > 0.05
