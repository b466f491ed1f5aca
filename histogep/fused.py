"""The same network with fewer passes over memory on the CPU: padding and activations go along.

Convolutions with TensorFlow's lopsided padding copy their input to pad it, and an activation is a
pass of its own over what the convolution wrote. Both cost more than arithmetic on narrow layers.
On one thread torch also keeps small batches from oneDNN, whose convolutions are faster.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import nn

log = logging.getLogger(__name__)

#: Largest change that fusing may make, as a share of the features' spread.
_TOLERANCE = 1e-3
#: Convolutions that pad as TensorFlow does: timm's, and those of `histogep.lite0`.
_LOPSIDED = ("Conv2dSame", "_SameConv2d")


class FusedConv2d(nn.Module):
    """A convolution and the activation that follows it, if one does, in one call of oneDNN.

    Parameters
    ----------
    convolution
        With symmetric padding.
    activation
        A ReLU, a ReLU6 or nothing.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self.geometry = [
            list(size) for size in (convolution.padding, convolution.stride, convolution.dilation)
        ]
        self.groups = convolution.groups
        self.activation: tuple[str, list[float]] = ("none", [])
        if activation is not None:
            capped = isinstance(activation, nn.ReLU6)
            self.activation = ("hardtanh", [0.0, 6.0]) if capped else ("relu", [])
        self._packed: torch.Tensor | None = None

    def pack(self, shape: Sequence[int]) -> None:
        """Lay out the weights as oneDNN wants them for inputs of a shape, once and not in each call.

        To be called last: what is packed can be neither copied nor moved.
        """
        self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(
            self.weight.contiguous().to_mkldnn(), *self.geometry, self.groups, list(shape)
        )

    def unpack(self) -> None:
        """Go on with the weights as they are."""
        self._packed = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activated output of the convolution."""
        name, bounds = self.activation
        weight = self.weight if self._packed is None else self._packed
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, self.bias, *self.geometry, self.groups, name, bounds, ""
        )


def fuse_convolutions(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a network with padding and activations taken into its convolutions.

    Batch norms are to be folded before. If the output for the example changes by more than rounding,
    or this build of torch has no such call, the network is returned as it was.

    Parameters
    ----------
    network
        On the CPU, in float32; takes inputs of the shape of the example only, from then on.
    example
        An input with content.
    """
    fused = copy.deepcopy(network)
    try:
        with torch.inference_mode(False), torch.no_grad():
            before = network(example)
            _pad_within(fused, example)
            for module in list(fused.modules()):
                _fuse_children(module)
            for module in list(fused.modules()):
                _route_the_rest(module)
            after = fused(example)
    except (RuntimeError, AttributeError) as error:
        log.info("convolutions of the encoder are not fused: %s", str(error)[:200])
        return network
    if (before - after).abs().max() > _TOLERANCE * before.std():
        log.warning("convolutions of the encoder could not be fused")
        return network
    return fused


def pack_weights(network: nn.Module, example: torch.Tensor, *, batch: int) -> None:
    """Pack the weights of all fused convolutions, in place; none where this build of torch cannot.

    Parameters
    ----------
    network
        Of `fuse_convolutions`, on its device and in its precision for good.
    example
        An input; only its shape matters.
    batch
        Number of inputs at once that are to be fast; others work too.
    """
    fused = [module for module in network.modules() if isinstance(module, FusedConv2d)]
    hooks = [
        module.register_forward_pre_hook(lambda m, args: m.pack((batch, *args[0].shape[1:])))
        for module in fused
    ]
    try:
        with torch.inference_mode():
            network(example.contiguous(memory_format=torch.channels_last))
    except (RuntimeError, AttributeError, TypeError) as error:
        log.info("weights of the encoder are not packed: %s", str(error)[:200])
        for module in fused:
            module.unpack()
    finally:
        for hook in hooks:
            hook.remove()


def _pad_within(network: nn.Module, example: torch.Tensor) -> None:
    """Give convolutions that pad one more px right and below a kernel with a row of zeros before it.

    With as much padding on all sides they then see the same pixels, and nothing is copied.
    """
    lopsided = [m for m in network.modules() if type(m).__name__ in _LOPSIDED]
    sizes: dict[nn.Module, torch.Size] = {}
    hooks = [
        module.register_forward_pre_hook(lambda m, args: sizes.update({m: args[0].shape[2:]}))
        for module in lopsided
    ]
    network(example)
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in sizes:
                setattr(parent, name, _padded_within(child, sizes[child]))


def _padded_within(convolution: nn.Conv2d, size: torch.Size) -> nn.Conv2d:
    more, padding = [], []
    for side, kernel, stride, dilation in zip(
        size, convolution.kernel_size, convolution.stride, convolution.dilation, strict=True
    ):
        reach = (kernel - 1) * dilation + 1
        total = max(0, (-(-side // stride) - 1) * stride + reach - side)
        if total % 2 and dilation > 1:
            return convolution
        more.append(total % 2)
        padding.append(-(-total // 2))
    kernel = [k + m for k, m in zip(convolution.kernel_size, more, strict=True)]
    padded = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        kernel,
        stride=convolution.stride,
        padding=padding,
        dilation=convolution.dilation,
        groups=convolution.groups,
        bias=convolution.bias is not None,
    )
    weight = nn.functional.pad(convolution.weight, (more[1], 0, more[0], 0))
    padded.weight = nn.Parameter(weight, requires_grad=False)
    padded.bias = convolution.bias
    return padded


def _fuse_children(module: nn.Module) -> None:
    """Join each convolution with the activation that follows it or its folded batch norm.

    Children of a sequence follow each other; of other modules only what stands where the batch norm
    was is known to.
    """
    children = list(module.named_children())
    for place, (name, child) in enumerate(children):
        if type(child) is not nn.Conv2d or isinstance(child.padding, str):
            continue
        following = children[place + 1 :]
        if isinstance(module, nn.Sequential):
            while following and not _doing(following[0][1]):
                following = following[1:]
        if not following or child.padding_mode != "zeros":
            continue
        after, rest = following[0]
        doing = _doing(rest)
        direct = isinstance(module, nn.Sequential) or isinstance(rest, nn.Sequential)
        if direct and len(doing) == 1 and isinstance(doing[0], nn.ReLU | nn.ReLU6):
            setattr(module, name, FusedConv2d(child, doing[0]))
            setattr(module, after, nn.Identity())


def _route_the_rest(module: nn.Module) -> None:
    """Send the convolutions that no activation follows through oneDNN too."""
    for name, child in list(module.named_children()):
        if (
            type(child) is nn.Conv2d
            and not isinstance(child.padding, str)
            and child.padding_mode == "zeros"
        ):
            setattr(module, name, FusedConv2d(child))


def _doing(module: nn.Module) -> list[nn.Module]:
    """Return the modules in a sequence, or the module itself, that do something."""
    if isinstance(module, nn.Sequential):
        return [part for child in module for part in _doing(child)]
    return [] if isinstance(module, nn.Identity) else [module]
