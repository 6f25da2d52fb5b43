"""Candidates of a mixture through the operators or through their modules, whichever is right and
faster here."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detnas_d2.layers.batch_statistics import over_ranks
from detnas_d2.layers.conv import ConvNormAct
from detnas_d2.layers.folded_norm import norm_of
from detnas_d2.layers.fused_residual import can_fuse_mixture, mixture
from detnas_d2.layers.inverted_residual import InvertedResidual
from detnas_d2.layers.over_ranks import on_one_machine, several_processes
from detnas_d2.layers.separable_conv import SeparableConv
from detnas_d2.ops.autotune import AutotuneCache, Trial, device_text, size_class
from detnas_d2.ops.self_check import Verdict, compare, most_agree, results

_CHECKED_PIXELS = 1024  # of the output; fewer leave little but rounding, more take memory


def choose(autotune: AutotuneCache, modules: Sequence[nn.Module], x: Tensor) -> list[bool]:
    """For every candidate whether the operators are to run it.

    A class is one kind of candidate, its channels, its number of pixels up to the next power of
    two, dtype and device. It is tried out in training on copies with random weights: alone and in a
    sum of two compared with modules in float64, alone timed. The candidates themselves and the
    random generators are left alone.

    Args:
        x: (N, C, H, W), their input; only its shape, dtype and device count.

    Returns:
        True only where :func:`~detnas_d2.layers.fused_residual.can_fuse_mixture` accepts a
        candidate, or did when it was tried.
    """
    if several_processes() and not (autotune.path and on_one_machine()):
        return [False] * len(modules)  # they could not agree, and would round otherwise
    pixels = size_class(x.shape[0] * x.shape[2] * x.shape[3])
    asked = (pixels, x.dtype, x.device, torch.get_num_threads())
    chosen = []
    for module in modules:
        known = autotune.known.setdefault(module, {})
        if asked not in known and can_fuse_mixture([module], x):
            known[asked] = _tried(autotune, module, x, pixels)
        chosen.append(known.get(asked, False))
    return chosen


def _tried(autotune: AutotuneCache, module: nn.Module, x: Tensor, pixels: int) -> bool:
    assert isinstance(module, (InvertedResidual, SeparableConv))
    if any(over_ranks(norm_of(layer)) for layer in _layers(module)):
        return False  # what runs then is not what was tried
    key = f"training {_name(module)}, {pixels} pixels, {x.dtype}, {device_text(x.device)}"
    like = torch.empty_like(x, device="meta")
    return autotune.use_ops(key, partial(_trial, module, like, x.device))


def _layers(module: nn.Module) -> list[ConvNormAct]:
    return [layer for layer in module.children() if isinstance(layer, ConvNormAct)]


def _name(module: InvertedResidual | SeparableConv) -> str:
    conv = module.depthwise.conv
    kind = "inverted residual" if isinstance(module, InvertedResidual) else "separable"
    channels = [layer.conv.in_channels for layer in _layers(module)[:2]]
    channels.append(module.project.conv.out_channels)
    return (
        f"{kind} k{conv.kernel_size[0]} dilation {conv.dilation[0]} stride {conv.stride[0]}"
        f"{' with residual' if module.residual else ''}, {' to '.join(map(str, channels))} channels"
    )


def _trial(module: nn.Module, like: Tensor, device: torch.device) -> Trial:
    """Two others of the class through the operators and through their modules."""
    generator = torch.Generator().manual_seed(0)
    pair = nn.ModuleList(_another(module, generator) for _ in range(2))

    def drawn(images: int) -> Tensor:
        shape = (images, *like.shape[1:])
        return torch.randn(shape, generator=generator).to(device, like.dtype)

    conv = module.get_submodule("depthwise.conv")
    assert isinstance(conv, nn.Conv2d)
    pixels = like[0, 0].numel() // conv.stride[0] ** 2
    checked, x = drawn(-(-_CHECKED_PIXELS // max(pixels, 1))), drawn(like.shape[0])
    return Trial(
        operators=partial(_once, pair[0], x, True),
        modules=partial(_once, pair[0], x, False),
        check=lambda: most_agree(
            lambda number: _check(pair, drawn(len(checked)) if number else checked)
        ),
        device=str(device),
    )


@torch.no_grad()
def _another(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """One of the same kind, with random weights, affine maps and running statistics."""
    made = copy.deepcopy(module)
    for part in made.modules():
        if isinstance(part, nn.Conv2d):
            fan_in = part.weight[0].numel()
            _draw(part.weight, 0.0, (2 / fan_in) ** 0.5, generator)
    for layer in _layers(made):
        norm = norm_of(layer)
        assert norm.running_mean is not None and norm.running_var is not None
        _draw(norm.weight, 1.0, 0.2, generator)
        _draw(norm.bias, 0.0, 0.1, generator)
        _draw(norm.running_mean, 0.0, 0.1, generator)
        norm.running_var.fill_(1.0)
    for parameter in made.parameters():
        parameter.grad = None
        parameter.requires_grad_()
    return made


def _draw(t: Tensor, mean: float, std: float, generator: torch.Generator) -> None:
    t.copy_(torch.randn(t.shape, generator=generator) * std + mean)


def _alone(module: nn.Module, x: Tensor, fused: bool) -> Tensor:
    return mixture([module], x, x.new_ones(1)) if fused else module(x)


@torch.enable_grad()
def _once(module: nn.Module, x: Tensor, fused: bool) -> None:
    y = _alone(module, x.detach().requires_grad_(), fused)
    y.backward(y.detach())


def _both(pair: nn.ModuleList, fused: bool, x: Tensor) -> Tensor:
    """The first alone, and a sum of two, which is one call of the operators."""
    first = _alone(pair[0], x, fused)
    weights = torch.tensor([0.6, -1.4], dtype=x.dtype, device=x.device)
    if fused:
        together = mixture(list(pair), x, weights)
    else:
        together = pair[0](x) * weights[0] + pair[1](x) * weights[1]
    return torch.cat([first, together])


def _check(pair: nn.ModuleList, x: Tensor) -> Verdict:
    """Compares outputs, running statistics and gradients."""
    ours, theirs, exact = (copy.deepcopy(pair) for _ in range(3))
    exact.double()
    found = results(partial(_both, ours, True), ours, x, True)
    trusted = results(partial(_both, theirs, False), theirs, x, True)
    truth = results(partial(_both, exact, False), exact, x, True, torch.float64)
    return compare(found, trusted, truth, x.dtype)
