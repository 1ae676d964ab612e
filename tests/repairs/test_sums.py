"""Sums of products, laid out and not; what least squares makes of them."""

import pytest
import torch
from torch import Tensor

from secateur.capture.calls import Call, Place
from secateur.capture.forms import Convolution
from secateur.repairs import sums
from secateur.repairs.least_squares import FOLDS, in_folds, shift, solve
from secateur.repairs.sums import fold_sums

DTYPE = torch.float64


def call(form: Convolution, inputs: Tensor, weight: Tensor, bias: Tensor) -> Call:
    def run(given: Tensor = inputs) -> Tensor:
        return torch.conv2d(given, weight, bias, form.stride, form.before, form.dilation)

    return Call(Place("w", 0, len(weight)), None, inputs, weight, bias, form, run)


@pytest.mark.parametrize("sizes", [[8], [5, 2, 6], [1, 1, 7]])
def test_all_positions_by_shifts_are_those_laid_out(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    form = Convolution((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    x = torch.randn(sum(sizes), 4, 9, 8, dtype=DTYPE)
    weight, bias = torch.randn(5, 4, 3, 3, dtype=DTYPE), torch.randn(5, dtype=DTYPE)
    dense = [call(form, part, weight, bias) for part in x.split(sizes)]
    kept = weight[[4, 1, 2]][:, [0, 3]]
    small = [call(form, part[:, [0, 3]] ** 3, kept, bias[[4, 1, 2]]) for part in x.split(sizes)]
    given = (dense, small, torch.tensor([[4, 1, 2]]), 10**6, torch.Generator())
    found = fold_sums(*given)
    ways: list[int] = []
    monkeypatch.setattr(sums, "is_cheaper", lambda *_: ways.append(0))
    expected = fold_sums(*given)
    assert len(ways) == 1 and len(found) == FOLDS
    for fold, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.rows == b.rows == 9 * 8 * len(range(fold, sum(sizes), FOLDS))
        torch.testing.assert_close(a.gram, b.gram, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(a.cross, b.cross, rtol=1e-10, atol=1e-10)
        assert a.energy == pytest.approx(b.energy)


def test_images_of_several_sizes_are_laid_out() -> None:
    form = Convolution((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    weight, bias = torch.randn(3, 2, 3, 3, dtype=DTYPE), torch.zeros(3, dtype=DTYPE)
    uses = [call(form, torch.randn(4, 2, 6, width, dtype=DTYPE), weight, bias) for width in (5, 7)]
    parts = fold_sums(uses, uses, torch.tensor([[0, 1, 2]]), 10**6, torch.Generator())
    assert [part.rows for part in parts] == [6 * 5 + 6 * 7] * FOLDS
    for part in parts:
        torch.testing.assert_close(part.cross, weight.flatten(1) @ part.gram[:, :-1])


def test_uneven_padding_is_laid_out() -> None:
    form = Convolution((3, 3), (1, 1), (1, 1), (0, 1), (1, 1))
    x = torch.randn(4, 2, 9, 8, dtype=DTYPE)
    weight = torch.randn(3, 2, 3, 3, dtype=DTYPE)

    def run(given: Tensor = x) -> Tensor:
        return torch.conv2d(torch.nn.functional.pad(given, (1, 1, 1, 0)), weight)

    use = Call(Place("w", 0, 3), None, x, weight, None, form, run)
    parts = fold_sums([use], [use], torch.tensor([[0, 1, 2]]), 10**6, torch.Generator())
    assert sum(part.rows for part in parts) == 4 * 8 * 8
    for part in parts:
        # The targets are those of the same weights.
        torch.testing.assert_close(part.cross, weight.flatten(1) @ part.gram[:, :-1])


def test_least_squares_misses_less_than_a_bias_and_that_less_than_nothing() -> None:
    torch.manual_seed(1)
    x = torch.randn(200, 1, 1, 5, dtype=DTYPE)
    targets = x.tanh() @ torch.randn(5, 3, dtype=DTYPE) + 2
    old = torch.randn(1, 3, 6, dtype=DTYPE)
    parts = in_folds(x, targets, 0)
    whole = sum(parts[1:], parts[0])
    moved = old.clone()
    moved[..., -1] += shift(parts, old)[0]
    fitted = solve(parts, old, "w", ridges=(1e-12,)).weights
    errors = [whole.error(weights) for weights in (fitted, moved, old)]
    assert errors[0] < 0.9 * errors[1] < 0.9 * errors[2]


def test_how_far_to_go_is_chosen_on_samples_that_were_not_fitted() -> None:
    """The errors that are stated are those of each fold's own weights, at the share that is best for all."""
    torch.manual_seed(2)
    x = torch.randn(24, 1, 1, 4, dtype=DTYPE)
    targets = x @ torch.randn(4, 2, dtype=DTYPE) + torch.randn(24, 1, 1, 2, dtype=DTYPE)
    old = torch.zeros(1, 2, 5, dtype=DTYPE)
    parts = in_folds(x, targets, 0)
    found = solve(parts, old, "w", ridges=(1e-12,), shares=(0.25, 0.5, 0.75))
    rows = torch.cat([x, torch.ones(24, 1, 1, 1, dtype=DTYPE)], dim=3)[:, 0, 0]
    errors = dict.fromkeys((0.25, 0.5, 0.75), 0.0)
    for fold in range(FOLDS):
        held = torch.arange(24) % FOLDS == fold
        fit = torch.linalg.lstsq(rows[~held], targets[~held, 0, 0]).solution
        for share in errors:
            errors[share] += float((targets[held, 0, 0] - share * rows[held] @ fit).square().sum())
    assert found.share == min(errors, key=lambda share: errors[share])
    assert found.after == pytest.approx(errors[found.share] / float(targets.square().sum()), rel=1e-6)
