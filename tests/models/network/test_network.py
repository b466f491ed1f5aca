from __future__ import annotations

import pytest
import torch
from torch import nn

from histogep.errors import InputError
from histogep.models.network.network import CMUNet, count_parameters, reach

NARROW = {"channels": [4, 6, 8, 10, 12], "blocks": 1, "kernel": 3}


def test_the_papers_network_has_the_papers_parameters(capsys):
    """768 features to 346 genes: 50.4 million, here counted block by block."""
    with torch.device("meta"):
        network = CMUNet(768, 346)
    counts = count_parameters(network)
    with capsys.disabled():
        print("\nCMU-Net 768 -> 346:", counts)
    assert counts == {
        "encoder": 19_291_776,
        "bottleneck": 7_734_272,
        "upward": 6_269_760,
        "gates": 7_671_040,
        "decoder": 9_406_080,
        "head": 22_490,
        "total": 50_395_418,
    }
    assert len(network.bottleneck) == 7
    assert network.bottleneck[0].space[0].kernel_size == (7, 7)
    assert network.bottleneck[0].space[0].groups == 1024
    # Counted by hand: two 3 x 3 convolutions with bias, two batch normalisations.
    first = (768 * 9 + 1) * 64 + (64 * 9 + 1) * 64 + 2 * 2 * 64
    assert count_parameters(network.encoder)["0"] == first == 479_616
    gate = (512 + 1) * 512 + 2 * (512 * 9 + 1) * 512 + (3 * 512 + 1) * 512 + 4 * 2 * 512
    assert count_parameters(network.gates)["0"] == gate == 5_773_312
    dilations = [view[0].dilation for view in network.gates[0].views]
    assert dilations == [(1, 1), (1, 1), (2, 2)]


@pytest.mark.parametrize("size", [(80, 64), (78, 64), (17, 33), (1, 1), (5, 50)])
def test_any_lattice_goes_in_and_comes_out(size):
    network = CMUNet(3, 2, **NARROW).eval()
    with torch.inference_mode():
        assert network(torch.randn(2, 3, *size)).shape == (2, 2, *size)


def test_a_gate_lets_through_between_once_and_twice():
    gate = CMUNet(3, 2, **NARROW).gates[0]
    grid = torch.rand(2, 10, 8, 8)
    ratio = gate(grid) / grid
    assert ratio.min() >= 1
    assert ratio.max() <= 2
    assert ratio.std() > 0
    nn.init.constant_(gate.vote[1].bias, 50.0)
    assert torch.allclose(gate(grid), 2 * grid)


def test_every_parameter_learns_and_the_reach_is_a_bound():
    torch.manual_seed(0)
    network = CMUNet(2, 1, channels=[4] * 5, blocks=1, kernel=3)
    grid = torch.randn(1, 2, 192, 192)
    network(grid).square().mean().backward()
    # A bias before batch normalisation has no effect in training: all else must have a gradient.
    idle = [n for n, p in network.named_parameters() if p.grad is None]
    assert not idle
    network.eval()
    grid.requires_grad_(True)
    network(grid)[0, 0, 96, 96].backward()
    rows, cols = torch.nonzero(grid.grad.abs().sum((0, 1)), as_tuple=True)
    farthest = max(int((axis - 96).abs().max()) for axis in (rows, cols))
    assert 16 < farthest <= reach(network)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": [8, 16]}, "5 positive widths"),
        ({"channels": [8, 8, 8, 8, 0]}, "5 positive widths"),
        ({"kernel": 4}, "kernel must be odd"),
    ],
)
def test_impossible_widths_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CMUNet(3, 2, **(NARROW | options))
