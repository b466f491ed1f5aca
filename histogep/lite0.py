"""EfficientNet-Lite0, the default encoder, in torch alone.

timm has it too (`tf_efficientnet_lite0`), and gives the same features. But importing timm, with
torchvision, costs a job three seconds, more than encoding a biopsy: a cohort pays it per slide.
"""

from __future__ import annotations

import torch
from torch import nn

#: Number of features.
LITE0_DIM = 1280
_STEM = 32
#: Of each stage: blocks, kernel, stride of the first block, expansion, channels
#: (EfficientNet-B0's table, Tan and Le, ICML 2019; Lite keeps stem and head at its widths).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Conv2dSame(nn.Conv2d):
    """A strided convolution that pads as TensorFlow does, where the weights were trained.

    The padding is split to the right and below, so it is none that `nn.Conv2d` itself can do.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ceil(side / stride) rows and columns."""
        pads: list[int] = []
        for axis in (1, 0):
            side, kernel, stride = x.shape[2 + axis], self.kernel_size[axis], self.stride[axis]
            pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(nn.functional.pad(x, pads))


class _NormAct(nn.BatchNorm2d):
    """A batch norm and the activation that follows it, as one, which leaves it when it is folded."""

    def __init__(self, channels: int, *, act: bool) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activated values."""
        return self.act(super().forward(x))


def _convolution(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, act: bool
) -> nn.Sequential:
    """Return a convolution, its batch norm and, if asked for, ReLU6."""
    kind = nn.Conv2d if stride == 1 else Conv2dSame
    padding = kernel // 2 if stride == 1 else 0
    return nn.Sequential(
        kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        _NormAct(outputs, act=act),
    )


class _InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, project; add the input where the shape allows."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        width = inputs * expansion
        expand = [_convolution(inputs, width, act=True)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            _convolution(width, width, kernel, stride=stride, groups=width, act=True),
            _convolution(width, outputs, act=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, outputs, height / stride, width / stride)."""
        y = self.layers(x)
        return x + y if self.residual else y


def create_lite0() -> nn.Sequential:
    """Return the network with random weights and no classifier.

    It takes (n, 3, height, width) and gives (n, 1280). The order of its tensors is that of the
    published weights.
    """
    layers: list[nn.Module] = [_convolution(3, _STEM, 3, stride=2, act=True)]
    inputs = _STEM
    for blocks, kernel, stride, expansion, outputs in _STAGES:
        for block in range(blocks):
            layers.append(
                _InvertedResidual(
                    inputs,
                    outputs,
                    kernel=kernel,
                    stride=stride if block == 0 else 1,
                    expansion=expansion,
                )
            )
            inputs = outputs
    layers += [_convolution(inputs, LITE0_DIM, act=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)
