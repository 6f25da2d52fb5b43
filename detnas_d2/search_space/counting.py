"""How costs are counted.

Conventions (those of the DetNAS paper and its released counter): a multiply-add counts 1;
convolutions and linear layers are counted, biases, normalisation, activations and pooling are not.
Parameters are all learned tensors, BatchNorm's weight and bias included, running statistics not.
The "body" of a backbone is its stem and choice blocks, without last convolution and classifier;
that is what the paper's limits of 300M and 1.3G apply to, at an input of 3x224x224.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Parameters and multiply-adds of a network or of one of its parts."""

    params: int = 0
    macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.macs - other.macs)


def conv_cost(
    height: int, width: int, cin: int, cout: int, kernel: int = 1, groups: int = 1
) -> Cost:
    """A bias-free convolution with an affine normalisation after it, at its output size."""
    weights = cout * (cin // groups) * kernel * kernel
    return Cost(weights + 2 * cout, height * width * weights)
