"""Gram matrices by shifts against inputs laid out as columns."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from secateur.capture import shifts
from secateur.capture.calls import Call, Place
from secateur.capture.forms import Convolution, Dense
from secateur.capture.gram import gram_of, gram_of_inputs
from secateur.capture.shifts import gram_by_shifts, is_cheaper

FORMS = {
    "same": (Convolution((3, 3), (1, 1), (1, 1), (1, 1), (1, 1)), (3, 4, 6, 5)),
    "uneven padding and dilation": (Convolution((3, 2), (1, 1), (0, 1), (1, 0), (1, 2)), (2, 3, 5, 7)),
    "dilated": (Convolution((4,), (1,), (3,), (2,), (2,)), (2, 3, 9)),
    "more padding than kernel": (Convolution((3,), (1,), (5,), (7,), (1,)), (2, 3, 2)),
    "taps apart by more than the image": (Convolution((3,), (1,), (8,), (8,), (9,)), (2, 3, 4)),
    "no padding": (Convolution((4, 4), (1, 1), (0, 0), (0, 0), (1, 1)), (2, 2, 6, 5)),
    "three dimensions": (Convolution((2, 1, 3), (1, 1, 1), (1, 0, 2), (0, 0, 0), (1, 1, 1)), (2, 2, 3, 4, 5)),
    "one tap": (Convolution((1,), (1,), (0,), (0,), (1,)), (2, 3, 4)),
}


@pytest.mark.parametrize("name", FORMS)
def test_by_shifts_is_as_laid_out(name: str) -> None:
    form, shape = FORMS[name]
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    design = form.design(x).flatten(0, 1).squeeze(1)
    torch.testing.assert_close(gram_by_shifts(form, x), design.T @ design, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [1, 7])
def test_blocks_are_added_up(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    form, shape = FORMS["uneven padding and dilation"]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    design = form.design(x).flatten(0, 1).squeeze(1)
    monkeypatch.setattr(shifts, "BLOCK", block)
    torch.testing.assert_close(gram_by_shifts(form, x), design.T @ design, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["same", "uneven padding and dilation", "dilated", "no padding"])
@pytest.mark.parametrize("size", [12, 20])
def test_what_is_cheaper_is_what_multiplies_less(name: str, size: int) -> None:
    form, shape = FORMS[name]
    x = torch.randn(20, 3, *(size,) * (len(shape) - 2))
    with FlopCounterMode(display=False) as by_shifts:
        gram_by_shifts(form, x)
    each = 2 * len(x) * (3 * math.prod(form.kernel)) ** 2
    even = by_shifts.get_total_flops() / each
    # What lies behind the last image is left out, and not counted so exactly.
    assert is_cheaper(form, x, round(1.15 * even)) and not is_cheaper(form, x, round(0.9 * even))


def test_the_cheaper_way_gives_the_same_gram_and_as_many_digits() -> None:
    form = FORMS["same"][0]
    torch.manual_seed(1)
    x = torch.randn(40, 6, 32, 32) + 0.5
    assert is_cheaper(form, x, 32 * 32)
    found, expected = gram_of_inputs(form, x), gram_of(form.design(x.double()))
    assert found.positions == expected.positions == 40 * 32 * 32
    assert torch.equal(found.total, found.total.mT) and float(found.total[0, -1, -1]) == found.positions
    error = (found.total - expected.total).norm() / expected.total.norm()
    assert float(error) < 5e-7
    whole = gram_of_inputs(form, x.double())
    torch.testing.assert_close(whole.total, expected.total, rtol=1e-12, atol=1e-9)


def test_some_positions_are_only_these_where_shifts_would_be_cheaper() -> None:
    form, x = FORMS["same"][0], torch.randn(3, 2, 12, 12, dtype=torch.float64)
    some = torch.tensor([0, 17, 30])
    assert is_cheaper(form, x, form.positions(x))
    found, expected = gram_of_inputs(form, x, some), gram_of(form.design(x)[:, some])
    assert found.positions == 9
    torch.testing.assert_close(found.total, expected.total)


def test_half_precision_is_summed_in_single() -> None:
    form = FORMS["same"][0]
    x = torch.full((4, 2, 32, 32), 3.0, dtype=torch.bfloat16)
    found, expected = gram_of_inputs(form, x), gram_of(form.design(x.double()))
    torch.testing.assert_close(found.total, expected.total)


def test_shifts_are_left_where_they_do_not_pay() -> None:
    form, x = FORMS["same"][0], torch.randn(2, 3, 8, 8)
    assert is_cheaper(form, x, 64) and not is_cheaper(form, x, 8)
    assert not is_cheaper(form, x[0], 64) and not is_cheaper(Dense(), x, 64)
    assert not is_cheaper(Convolution((3, 3), (2, 2), (1, 1), (1, 1), (1, 1)), x, 64)
    assert not is_cheaper(Convolution((3, 3), (1, 1), (1, 1), (1, 1), (1, 1), 3), x, 64)
    # Most of what would be summed lies around the outputs, and is taken off again: digits would be lost.
    wide = Convolution((7, 7), (1, 1), (0, 0), (0, 0), (1, 1))
    assert not is_cheaper(wide, x, 10**6)


@pytest.mark.parametrize("positions", [None, torch.tensor([0, 3])])
def test_large_inputs_are_laid_out_in_parts(positions: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Convolution((2,), (2,), (0,), (0,), (1,))
    x = torch.randn(5, 2, 9, dtype=torch.float64)
    whole = gram_of(form.design(x, positions))
    monkeypatch.setattr("secateur.capture.gram.ELEMENTS", 40)
    found = gram_of_inputs(form, x, positions)
    assert found.positions == whole.positions
    torch.testing.assert_close(found.total, whole.total)
    call = Call(Place("w", 0, 1), None, x[0], torch.zeros(1, 2, 2), None, form, lambda x=x: x)
    torch.testing.assert_close(gram_of_inputs(form, x[0]).total, gram_of(call.design()).total)
