"""The 300M backbone through the operators against its modules, one JSON object per line.

    python benchmarks/backbone.py [--quick] [--threads 1 2] [--device cuda] [--compile] [--graph]
        [--sizes 320x480 800x1216] [--batches 1 2 16]

Recalibration (batch statistics, no gradient), evaluation, both also with weights kept as our own
loops keep them (``weights_stay``), a training step (forward and backward), and the memory
that it keeps between forward and backward. "--graph", on a GPU: forwards once more, each replayed
from a CUDA graph of its launches, autocast's casts among them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial

import measure
import torch
from device_model import device_ms
from model import WAYS, kernels_of
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detnas_d2.layers import ConvNormAct, get_norm
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.layers.kept_weights import weights_stay
from detnas_d2.modeling import DecodedBackbone
from detnas_d2.search_space import SPACES

# COCO-FPN-300M as released.
PATH = "7x7 5x5 7x7 3x3 / 7x7 5x5 5x5 7x7 / xception xception 5x5 xception 3x3 3x3 xception 5x5 / "
PATH += "xception 5x5 xception 7x7"
SIZES = {"320x480": [1], "800x1216": [1, 2]}

Ways = dict[str, Callable[[], object]]


def build(device: str) -> dict[str, nn.Module]:
    """The same network in every variant."""
    torch.manual_seed(0)
    space = SPACES["detnas_small"]
    ours = DecodedBackbone(
        space.path(PATH),
        norm=partial(get_norm, "BN"),
        shuffle_method=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        init="default",
    ).to(device)
    ours.fused_ops = "on"
    eager = copy.deepcopy(ours)
    eager.fused_ops = "off"
    folded = copy.deepcopy(eager).eval()
    for module in folded.modules():
        if isinstance(module, ConvNormAct):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.norm = nn.Identity()
    nets = {"ours": ours, "eager NCHW": eager, "folded BN NCHW": folded}
    for name in ("eager", "folded BN"):
        net = copy.deepcopy(nets[f"{name} NCHW"]).to(memory_format=torch.channels_last)
        nets[f"{name} channels_last"] = net
    return nets


def step(net: nn.Module, x: Tensor) -> None:
    net.zero_grad()
    torch.autograd.backward([feature.sum() for feature in net(x).values()])


def kept_bytes(net: nn.Module, x: Tensor) -> int:
    """Bytes of activations saved for backward, each storage once."""
    own = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = net(x)
        total = sum(seen.values())
    del outputs
    return total


def without_gradient(f: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return f()

    return run


def replayed(f: Callable[[], object]) -> Callable[[], object]:
    """The same from a CUDA graph. Autocast keeps no casts, which would not be made again."""

    def run() -> object:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return f()

    return measure.graphed(run)


def expected(report: measure.Report, forward: str, x: Tensor, names: Iterable[str]) -> dict:
    """Milliseconds on the device by the model, of ours and of the ways among ``names``."""
    if report.device is None or report.counts is None:
        return {}
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    found = {}
    for name in ("ours", *names):
        kind = next((w for w in WAYS if name in (w, f"{w} NCHW", f"{w} channels_last")), None)
        kind = "torch.compile" if name == "torch.compile eager" else kind
        if kind is not None:
            kernels = kernels_of(report.counts["kernels"], kind, forward)
            found[name] = device_ms(kernels, report.device, pixels)
    return found


def forwards(
    report: measure.Report, forward: str, x: Tensor, batch: str, threads: int, ours: Callable,
    others: Ways, repetitions: int,
) -> None:  # fmt: skip
    """Compares a forward pass, and asked to its graphs."""
    case = f"{forward} forward, {batch}"
    model = expected(report, forward, x, others)
    report.compare(case, threads, ours, others, repetitions, model)
    if not report.args.graph:
        return
    graphs: Ways = {}
    for name, f in {"ours": ours, **others}.items():
        try:
            graphs[name] = replayed(f)
        except RuntimeError as error:
            report.failed(f"{case}, graphs, {name}", error)
    if "ours" in graphs and len(graphs) > 1:
        mine = graphs.pop("ours")
        report.compare(f"{case}, graphs", threads, mine, graphs, repetitions, model)


def compare_all(report: measure.Report, x: Tensor, size: str, threads: int, args) -> None:
    nets = build(args.device)
    xs = {"NCHW": x, "channels_last": x.contiguous(memory_format=torch.channels_last)}
    batch = f"{size}, batch {x.shape[0]}"
    repetitions = 8 if args.quick or x.shape[-1] > 480 else 20

    def runs(kinds: tuple[str, ...], f: Callable) -> dict[str, Callable[[], object]]:
        found = {}
        for kind in kinds:
            for layout, image in xs.items():
                net = nets[f"{kind} {layout}"]
                found[f"{kind} {layout}"] = partial(f, net, image)
        if args.compile:
            torch.compiler.reset()
            net = torch.compile(nets[f"{kinds[-1]} channels_last"])
            found[f"torch.compile {kinds[-1]}"] = partial(f, net, xs["channels_last"])
        return found

    def forward(net: nn.Module, image: Tensor) -> object:
        with torch.no_grad():
            return net(image)

    for net in nets.values():
        net.train(not any(isinstance(m, nn.Identity) for m in net.modules()))
    ours = nets["ours"]
    mine = without_gradient(lambda: ours(x))
    others = runs(("eager",), forward)
    with use_batch_statistics(ours):
        forwards(report, "recalibration", x, batch, threads, mine, others, repetitions)
        if args.device == "cpu":
            case = f"recalibration forward in a calibration loop, weights kept, {batch}"
            with weights_stay(ours):
                report.compare(case, threads, mine, others, repetitions)
    if x.shape[0] == 1 and size == "320x480":
        report.compare(
            f"training step, {batch}", threads, lambda: step(ours, x), runs(("eager",), step),
            repetitions,
        )  # fmt: skip
        kept = {name: kept_bytes(nets[name], x) for name in ("ours", "eager NCHW")}
        report.write(
            {
                "bench": report.bench,
                "case": f"memory kept for backward, {batch}",
                "baseline": "eager NCHW",
                "ratio": round(kept["ours"] / kept["eager NCHW"], 3),
                "ours_mib": round(kept["ours"] / 2**20, 1),
                "baseline_mib": round(kept["eager NCHW"] / 2**20, 1),
            }
        )
    for net in nets.values():
        net.eval()
    others = runs(("eager", "folded BN"), forward)
    forwards(report, "evaluation", x, batch, threads, mine, others, repetitions)
    if args.device == "cpu":
        case = f"evaluation forward in an evaluator's loop, weights kept, {batch}"
        with weights_stay(ours):
            report.compare(case, threads, mine, others, repetitions)


def main() -> None:
    parser = measure.parser(__doc__.splitlines()[0])
    parser.add_argument("--graph", action="store_true", help="CUDA graphs of forwards, too")
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, help="of the images; all, with --quick the first one"
    )
    parser.add_argument("--batches", type=int, nargs="+", help="images, of every size")
    args = parser.parse_args()
    sizes = args.sizes or list(SIZES)[: 1 if args.quick else None]
    if args.graph and args.device != "cuda":
        parser.error("--graph needs --device cuda")
    measure.keep_memory(args.device == "cpu" and not args.page_faults)
    report = measure.Report("backbone", args)
    for threads in args.threads if args.device == "cpu" else [1]:
        torch.set_num_threads(threads)
        report.roofline(threads)
        for size in sizes:
            for batch in args.batches or SIZES[size]:
                h, w = map(int, size.split("x"))
                x = torch.rand(batch, 3, h, w, device=args.device)
                if args.device == "cuda":
                    with torch.autocast("cuda", torch.bfloat16):
                        compare_all(report, x, size, threads, args)
                else:
                    compare_all(report, x, size, threads, args)


if __name__ == "__main__":
    main()
