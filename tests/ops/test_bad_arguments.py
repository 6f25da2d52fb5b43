from __future__ import annotations

import pytest
import torch

from detnas_d2 import ops
from detnas_d2.ops import BNStats
from tests.ops import bad_arguments


def test_every_wrong_tensor_is_refused() -> None:
    assert bad_arguments.check() > 1500


def test_every_operator_has_its_cases() -> None:
    found = {op for op, *_ in bad_arguments.CASES}
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("detnas_d2::")]
    with_maps = {s.name.removeprefix("detnas_d2::") for s in schemas if "Tensor" in str(s)} - {
        "digest"
    }
    assert found == with_maps


@pytest.mark.parametrize(
    "kernel, weight", [(3, 5), (5, 3), (7, 9), (7, 11), (0, 5), (3, 2), (3, 4)]
)
@pytest.mark.parametrize("stride", [1, 2])
def test_kernel_and_depthwise_weights_of_a_block_agree(
    kernel: int, weight: int, stride: int
) -> None:
    args = bad_arguments.block(kernel, stride)
    args[1] = [w if w.shape[2] == 1 else torch.ones(*w.shape[:2], weight, weight) for w in args[1]]
    k = kernel or 3
    with pytest.raises(RuntimeError, match=rf"weights\[\d\]: expected shape \[\d, 1, {k}, {k}\]"):
        ops.shuffle_block(*args)


def test_messages_name_argument_expected_and_got() -> None:
    mean = torch.ones(300)
    stats = BNStats(torch.tensor(4.0, dtype=torch.float64), mean, mean)
    with pytest.raises(RuntimeError, match=r"gamma: expected shape \[300\], got \[7\]"):
        ops.bn_fold(stats, torch.ones(7), torch.zeros(7), 1e-5)
    with pytest.raises(RuntimeError, match="x: expected an even number of channels, got 5"):
        args = bad_arguments.block(3, 1)
        ops.shuffle_block(torch.ones(1, 5, 3, 3), *args[1:])
    args = bad_arguments.block(3, 1)
    with pytest.raises(RuntimeError, match=r"biases\[1\]: expected shape \[6\], got \[5\]"):
        ops.shuffle_block(args[0], args[1], [args[2][0], torch.ones(5), args[2][2]], *args[3:])
    with pytest.raises(RuntimeError, match=r"m2: expected dtype Float as mean, got Double"):
        ops.bn_fold(stats._replace(m2=mean.double()), None, None, 1e-5)
