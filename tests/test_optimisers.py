from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from histogep import optimisers

REPOSITORY = Path(__file__).resolve().parents[1]
#: Trains, saves and restores as `histogep.training` and `histogep.checkpoints` do.
TRAINS = """
import sys
from tests.test_optimisers import trained
from histogep import optimisers
trained(optimisers.Adam, fused=True)
trained(optimisers.AdamW)
print(*(name for name in ("torch._dynamo", "triton") if name in sys.modules))
"""


def trained(kind, **options):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.GELU(), torch.nn.Linear(4, 1))
    optimiser = kind(network.parameters(), lr=0.05, weight_decay=0.01, **options)
    data = torch.randn(16, 5)
    for step in range(6):
        if step == 3:
            state = optimiser.state_dict()
            optimiser = kind(network.parameters(), lr=0.05, weight_decay=0.01, **options)
            optimiser.load_state_dict(state)
        optimiser.zero_grad()
        network(data).square().mean().backward()
        optimiser.step()
    return [parameter.detach() for parameter in network.parameters()]


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("fused", [True, False])
def test_they_step_as_torchs_own_do(name, fused):
    own = trained(getattr(optimisers, name), fused=fused)
    wanted = trained(getattr(torch.optim, name), fused=fused)
    for mine, theirs in zip(own, wanted, strict=True):
        assert torch.equal(mine, theirs)


def test_training_does_not_import_the_compiler():
    done = subprocess.run(
        [sys.executable, "-c", TRAINS], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout.split() == []
