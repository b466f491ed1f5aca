"""Adam and AdamW as torch has them, without torch's compiler.

torch keeps its compiler away from the methods of its optimisers, and imports the compiler to do so:
seconds, for jobs that compile nothing. The methods themselves are torch's own.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer


class _Uncompiled:
    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class Adam(_Uncompiled, torch.optim.Adam):
    """`torch.optim.Adam` that leaves torch's compiler alone."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Uncompiled, torch.optim.AdamW):
    """`torch.optim.AdamW` that leaves torch's compiler alone."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
