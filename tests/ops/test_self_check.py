from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detnas_d2.ops.self_check import BOUNDS, MOST, Verdict, compare, most_agree


def tensors(*errors: float) -> dict[str, Tensor]:
    """ "a", "b", ... of relative errors against ``tensors(0, 0, ...)``."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, error in zip("abc", errors, strict=False):
        x, direction = torch.randn(2, 40, generator=generator, dtype=torch.float64)
        direction *= x.norm() / direction.norm()
        found[name] = x + error * direction
    return found


@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_bound_grows_with_what_the_modules_err(dtype: torch.dtype) -> None:
    bound, exact = BOUNDS[dtype], tensors(0)
    assert compare(tensors(0.9 * bound), exact, exact, dtype).agrees
    assert not compare(tensors(1.1 * bound), exact, exact, dtype).agrees
    assert compare(tensors(4.9 * bound), tensors(bound), exact, dtype).agrees
    assert not compare(tensors(5.1 * bound), tensors(bound), exact, dtype).agrees


def test_the_worst_tensor_is_named() -> None:
    verdict = compare(tensors(0, 0.3, 0.01), tensors(0, 0, 0), tensors(0, 0, 0), torch.float32)
    assert verdict.tensor == "b" and verdict.error == pytest.approx(0.3)
    assert verdict.bound == pytest.approx(1e-3) and not verdict.agrees


def test_a_missing_gradient_never_passes() -> None:
    exact, missing = tensors(0), {"a": torch.zeros(40)}
    verdict = compare(missing, tensors(0.99 * MOST), exact, torch.bfloat16)
    assert verdict.error == 1 and verdict.bound < 0.5 and not verdict.agrees
    assert compare(missing, tensors(1.01 * MOST), exact, torch.bfloat16) == Verdict("", 0.0, 0.0)


def test_what_is_zero_but_for_rounding_is_small_beside_the_rest() -> None:
    exact = {**tensors(0), "zero": torch.full((40,), 1e-17, dtype=torch.float64)}
    noise = {**exact, "zero": torch.full((40,), -1e-16, dtype=torch.float64)}
    assert compare(noise, exact, exact, torch.float64).agrees
    wrong = {**exact, "zero": torch.full((40,), 1e-3, dtype=torch.float64)}
    verdict = compare(wrong, exact, exact, torch.float64)
    assert verdict.tensor == "zero" and not verdict.agrees
    nothing = {"a": torch.zeros(3, dtype=torch.float64)}
    assert compare(nothing, nothing, nothing, torch.float64).agrees
    assert not compare({"a": torch.ones(3)}, nothing, nothing, torch.float32).agrees


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_disagree(value: float) -> None:
    exact = tensors(0)
    broken = {"a": exact["a"].clone()}
    broken["a"][3] = value
    assert compare(broken, exact, exact, torch.float16).error == float("inf")
    assert not compare({"a": exact["a"][:5]}, exact, exact, torch.float16).agrees


def test_two_of_three_draws_have_to_agree() -> None:
    wrong, right = Verdict("a", 1.0, 0.1), Verdict("b", 0.0, 0.1)
    for verdicts, asked, agrees in (
        ([right], 1, True),
        ([wrong, right, right], 3, True),
        ([wrong, right, wrong], 3, False),
        ([wrong, wrong, right], 3, False),
        ([wrong, wrong, wrong], 3, False),
    ):
        draws: list[int] = []

        def check(number: int, verdicts=verdicts, draws=draws) -> Verdict:
            draws.append(number)
            return verdicts[number]

        assert most_agree(check).agrees == agrees and draws == list(range(asked))
