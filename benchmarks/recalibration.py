"""``detnas_d2.recalibrate`` beside fvcore's ``update_bn_stats``; JSON lines.

    python benchmarks/recalibration.py [--quick] [--threads 1 2] [--device cuda] [--output FILE]

Both take the same batches, one after the other in every repetition; "forward" is the same passes in
training mode without gradients, which neither can do without. Networks: torchvision's ResNet-18 and
a backbone of DetNAS's search through its modules and through the operators. "difference" is the
largest between the running means, in standard deviations: rounding.
"""

from __future__ import annotations

import copy
import random
from functools import partial

import measure
import torch
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn
from torchvision.models import resnet18

import detnas_d2
from detnas_d2.layers.batch_norm_mode import batch_norms
from detnas_d2.modeling import decoded_backbone
from detnas_d2.search_space import SPACES


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    space = SPACES["detnas_small"]
    path = str(space.random_path(random.Random(0)))
    backbone = partial(decoded_backbone, space=space, path=path, norm="BN")
    return {
        "resnet18": resnet18(),
        "detnas_small, modules": backbone(fused_ops="off"),
        "detnas_small, operators": backbone(fused_ops="on"),
    }


def difference(model: nn.Module, batches: list[Tensor]) -> float:
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    detnas_d2.recalibrate(ours, batches)
    update_bn_stats(theirs, batches, len(batches))
    pairs = zip(batch_norms(ours).values(), batch_norms(theirs).values(), strict=True)
    return max(
        float(((a.running_mean - b.running_mean) / (b.running_var + b.eps).sqrt()).abs().max())
        for a, b in pairs
    )


@torch.no_grad()
def forward(model: nn.Module, batches: list[Tensor]) -> None:
    for batch in batches:
        model(batch)


def main() -> None:
    args = measure.parser(__doc__.splitlines()[0]).parse_args()
    measure.keep_memory(not args.page_faults)
    report = measure.Report("recalibration", args)
    size, count, repetitions = (64, 2, 3) if args.quick else (224, 8, 9)
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name, model in networks().items():
            model.to(args.device).train()
            batches = [torch.rand(4, 3, size, size, device=args.device) for _ in range(count)]
            report.compare(
                f"{name}, {count} batches of 4 images of {size} x {size}",
                threads,
                partial(detnas_d2.recalibrate, model, batches),
                {
                    "update_bn_stats": partial(update_bn_stats, model, batches, count),
                    "forward": partial(forward, model, batches),
                },
                repetitions,
                difference=difference(model, batches),
            )


if __name__ == "__main__":
    main()
