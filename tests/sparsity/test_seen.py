"""What calibration data tells of one use of a weight, against sums made sample by sample."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.capture.calls import Call, Place
from secateur.capture.forms import Dense
from secateur.data import Batch
from secateur.sparsity import seen
from secateur.sparsity.seen import Sums, seen_calls
from secateur.sparsity.walk import weights_with_inputs
from secateur.sparsity.weights import find_weights

DTYPE = torch.float64
COLUMNS, ROWS = 3, 2


def call(inputs: Tensor, weight: Tensor, bias: Tensor) -> Call:
    def run(given: Tensor = inputs) -> Tensor:
        return functional.linear(given, weight, bias)

    return Call(Place("w", 0, ROWS), None, inputs, weight, bias, Dense(), run)


def tables(*shape: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of the dense model and of the one at work, and a weight with its bias."""
    torch.manual_seed(0)
    return (
        torch.randn(*shape, COLUMNS, dtype=DTYPE),
        torch.randn(*shape, COLUMNS, dtype=DTYPE),
        torch.randn(ROWS, COLUMNS, dtype=DTYPE),
        torch.randn(ROWS, dtype=DTYPE),
    )


def check(found: Sums, inputs: Tensor, outputs: Tensor) -> None:
    """`inputs` (positions, columns) are what was seen, `outputs` (positions, rows) what is wanted, without the bias."""
    columns = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=DTYPE)], dim=1)
    assert found.gram.positions == len(inputs)
    assert found.wanted is not None
    torch.testing.assert_close(found.gram.total[0], columns.T @ columns)
    torch.testing.assert_close(found.wanted.cross[0], outputs.T @ columns)
    assert found.wanted.energy == pytest.approx(float(outputs.square().sum()))


@pytest.mark.parametrize("elements", [1, 25, 10**6])
def test_every_fourth_sample_is_held_out_whatever_the_parts(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "ELEMENTS", elements)
    before, now, weight, bias = tables(11, 4)
    dense, small = ([call(part, weight, bias) for part in x.split([3, 6, 2])] for x in (before, now))
    found = seen_calls(small, dense)
    held = torch.arange(11) % 4 == 3
    for sums, chosen in ((found.fit, ~held), (found.held, held)):
        check(sums, now[chosen].flatten(0, 1), (before @ weight.T)[chosen].flatten(0, 1))
    assert found.judged() is found.held


@pytest.mark.parametrize("positions", [4, 5, 9])
def test_of_one_sample_positions_are_held_out_if_there_are_many(positions: int) -> None:
    before, now, weight, bias = tables(1, positions)
    found = seen_calls([call(now, weight, bias)], [call(before, weight, bias)])
    held = (torch.arange(positions) % 4 == 3) & (positions > 4)
    check(found.fit, now[0, ~held], (before @ weight.T)[0, ~held])
    check(found.held, now[0, held], (before @ weight.T)[0, held])
    assert found.judged() is (found.held if positions > 4 else found.fit)


def test_a_last_batch_of_one_sample_is_a_sample_like_others() -> None:
    before, now, weight, bias = tables(4, 8)
    dense, small = ([call(part, weight, bias) for part in x.split(3)] for x in (before, now))
    found = seen_calls(small, dense)
    check(found.held, now[3], before[3] @ weight.T)
    check(found.fit, now[:3].flatten(0, 1), (before[:3] @ weight.T).flatten(0, 1))


def test_a_bare_vector_is_one_sample() -> None:
    _, now, weight, bias = tables()
    check(seen_calls([call(now, weight, bias)], [call(now, weight, bias)]).fit, now[None], (weight @ now)[None])


def test_positions_are_drawn_for_all_samples_alike_and_for_both_models() -> None:
    before, now, weight, bias = tables(5, 5000)
    found = seen_calls([call(now, weight, bias)], [call(before, weight, bias)])
    # 1,000 for each of three columns, over five samples.
    assert (found.fit.gram.positions, found.held.gram.positions) == (4 * 600, 600)
    same = seen_calls([call(now, weight, bias)], [call(now, weight, bias)])
    for sums in (same.fit, same.held):
        assert sums.wanted is not None
        torch.testing.assert_close(sums.wanted.cross, weight @ sums.gram.total[:, :-1])


def test_without_targets_outputs_are_left_open() -> None:
    _, now, weight, bias = tables(5, 2)
    found = seen_calls([call(part, weight, bias) for part in now.split(3)])
    assert found.fit.wanted is None and found.held.wanted is None
    assert found.fit.gram.positions == 8


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(COLUMNS, COLUMNS)

    def forward(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x).tanh())


def test_a_weight_that_is_used_twice_is_seen_with_all_its_inputs() -> None:
    torch.manual_seed(0)
    model, x = Twice().double(), torch.randn(11, COLUMNS, dtype=DTYPE)
    held = torch.arange(11) % 4 == 3
    with torch.no_grad():
        inputs = torch.stack([x, model.shared(x).tanh()], dim=1)
        weights = find_weights(model, Batch((x[:1],), {}, None))
        batches = [Batch((part,), {}, None) for part in x.split([6, 3, 2])]
        ((weight, found),) = weights_with_inputs(model, batches, weights)
    assert weight.name == "shared.weight"
    for sums, chosen in ((found.fit, ~held), (found.held, held)):
        columns = torch.cat([inputs[chosen].flatten(0, 1), torch.ones(2 * int(chosen.sum()), 1, dtype=DTYPE)], dim=1)
        assert sums.gram.positions == len(columns)
        torch.testing.assert_close(sums.gram.total[0], columns.T @ columns)
