"""What is a multiple of something that stays is made up for without data."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.graph.groups import find_groups
from secateur.repairs.folding import fold
from secateur.surgery.plan import Plan


def halves(model: nn.Module, example: torch.Tensor) -> tuple[sc.Program, Plan]:
    """A plan that removes the second half of each row of each group."""
    program = sc.trace(model, (example,))
    groups = find_groups(program)
    keep = {g.name: (torch.arange(g.width) < g.width // 2).repeat(g.rows).nonzero().flatten() for g in groups}
    return program, Plan(keep, {g.name: g.size for g in groups})


def test_positive_multiples_before_batch_norm_and_relu_are_folded_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3)).double().eval()
    norm, scales = model[1], torch.tensor([0.5, 2.0, 3.0, 0.1]).double()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    with torch.no_grad():
        # Another filter, another variance: only with the norm multiplied in are they multiples.
        model[0].weight[4:] = 3 * model[0].weight[:4]
        model[0].bias[4:] = 3 * model[0].bias[:4]
        norm.running_mean[4:] = 3 * norm.running_mean[:4]
        norm.running_var[4:] = norm.running_var[:4]
        norm.weight[4:] = (
            scales
            / 3
            * norm.weight[:4]
            * ((norm.running_var[:4] + norm.eps) / (norm.running_var[4:] + norm.eps)).sqrt()
        )
        norm.bias[4:] = scales * norm.bias[:4]
    x = torch.randn(3, 2, 7, 7).double()
    program, plan = halves(model, x)
    plain, folded = sc.cut(model, plan, program=program), fold(model, plan, program=program)
    assert (plain(x) - model(x)).abs().max() > 0.1
    torch.testing.assert_close(folded(x), model(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 6, batch_first=True, bidirectional=True), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


def test_twins_of_recurrent_units_are_folded_exactly() -> None:
    torch.manual_seed(1)
    model = Recurrent().double()
    for p in model.rnn.parameters():
        gates = p.data.reshape(4, 6, *p.shape[1:])
        gates[:, 3:] = gates[:, :3]
    x = torch.randn(2, 5, 4).double()
    program, plan = halves(model, x)
    torch.testing.assert_close(fold(model, plan, program=program)(x), model(x))


def test_channels_fold_within_their_own_group_only() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv1d(2, 8, 1), nn.ReLU(), nn.Conv1d(8, 4, 3, groups=2), nn.ReLU(), nn.Conv1d(4, 3, 1)
    ).double()
    weight, bias = model[0].weight.data, model[0].bias.data
    for unit, twin in ((2, 0), (3, 1), (6, 4), (7, 5)):
        weight[unit], bias[unit] = 2 * weight[twin], 2 * bias[twin]
    # Nearer still, but in the other group of the convolution that reads them.
    weight[4], bias[4] = weight[0], bias[0]
    weight[6], bias[6] = 2 * weight[4], 2 * bias[4]
    x = torch.randn(3, 2, 9).double()
    program = sc.trace(model, (x,))
    group = next(g for g in find_groups(program) if g.rows == 2 and g.size == 8)
    plan = Plan({group.name: torch.tensor([0, 1, 4, 5])}, {group.name: 8})
    torch.testing.assert_close(fold(model, plan, program=program)(x), model(x))


def test_what_points_the_other_way_is_not_folded() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).double()
    model[0].weight.data = torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).double()
    x = torch.randn(5, 2).double()
    program = sc.trace(model, (x,))
    plan = Plan({"0": torch.tensor([0])}, {"0": 2})
    assert torch.equal(fold(model, plan, program=program)(x), sc.cut(model, plan, program=program)(x))


@pytest.mark.parametrize("seed", range(3))
def test_the_original_stays_and_partial_likeness_helps(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).double()
    with torch.no_grad():
        model[0].weight[10:] = model[0].weight[:10] + 0.2 * model[0].weight[10:]
    before = [p.clone() for p in model.parameters()]
    x = torch.randn(500, 6).double()
    program, plan = halves(model, x[:2])
    plain, folded = sc.cut(model, plan, program=program), fold(model, plan, program=program)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert (folded(x) - model(x)).square().mean() < 0.6 * (plain(x) - model(x)).square().mean()
