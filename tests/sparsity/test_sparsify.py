"""Whole models: what is zero, what the rest becomes, and what the result says of it."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.capture.lockstep import Norm
from secateur.data import Batch
from secateur.errors import ArgumentError, PlanError
from secateur.sparsity import norms, seen
from secateur.sparsity.measured_shares import Measured
from secateur.sparsity.method import Masked
from secateur.sparsity.norms import recalibrate
from secateur.sparsity.obc import OBC
from secateur.sparsity.patterns import NM, Blocks, Unstructured
from secateur.sparsity.plan import SparsityPlan
from secateur.sparsity.shares import ERK, OWL, Asked, Global, Uniform
from secateur.sparsity.sparsegpt import SparseGPT
from secateur.sparsity.weights import find_weights

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module] = nn.LSTM, **more: Any) -> None:
        super().__init__()
        self.rnn = kind(5, 8, num_layers=2, batch_first=True, **more)
        self.head = nn.Linear(self.rnn(torch.zeros(1, 1, 5))[0].shape[2], 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return self.head(out[:, -1])


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return x + self.cross(y, x, x, need_weights=False)[0]


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 4),
    )


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "lstm": (Recurrent, (6, 5)),
    "lstm, both ways, projected": (lambda: Recurrent(nn.LSTM, bidirectional=True, proj_size=4), (6, 5)),
    "gru": (lambda: Recurrent(nn.GRU), (6, 5)),
    "rnn": (lambda: Recurrent(nn.RNN, bias=False), (6, 5)),
    "cell": (Cell, (6, 5)),
    "attention": (Attention, (6, 8)),
    "convolutions": (convolutions, (3, 6, 6)),
}


def made(name: str) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    # Inputs that correlate, as those of any use do.
    mixing = torch.randn(shape[-1], shape[-1]) @ torch.diag(torch.linspace(0.1, 2, shape[-1]))
    return model, [torch.randn(n, *shape) @ mixing for n in (120, 120, 60)]


def output_error(model: nn.Module, sparse: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        x = torch.cat(batches)
        return float((model(x) - sparse(x)).square().mean())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)])
def test_all_weights_of_any_model_become_sparse_and_a_fit_beats_zeros_alone(name: str, pattern: Any) -> None:
    model, batches = made(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bare = sc.Sparsity(0.5, pattern, Masked())
    plain = sc.sparsify(model, bare, calibration=batches, recalibrated=False, asymmetric=False)
    found = sc.sparsify(model, sc.Sparsity(0.5, pattern, OBC()), calibration=batches)
    assert output_error(model, found.model, batches) < output_error(model, plain.model, batches)
    matrices = {k for k, v in model.named_parameters() if v.ndim > 1}
    assert set(found.masks) == matrices
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(found.model.state_dict()) == list(before)
    for k in matrices:
        values = found.model.get_parameter(k)
        assert (values[~found.masks[k]] == 0).all()
        keep = found.masks[k].reshape(len(values), -1)
        if isinstance(pattern, NM):
            assert all(
                (keep[:, c : c + 4].sum(1) == min(2, keep.shape[1] - c)).all() for c in range(0, keep.shape[1], 4)
            )
        else:
            assert abs(float(keep.double().mean()) - 0.5) < 0.5 / keep.numel() + 1e-9
    for w in found.weights:
        assert w.after <= w.before
    assert found.sparsity == pytest.approx(0.5, abs=0.05)
    assert all(w.name in str(found) for w in found.weights)


def test_a_linear_layer_gets_the_fit_with_intercept_of_its_support() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double(), torch.randn(80, 6).double() + 1
    found = sc.sparsify(layer, sc.Sparsity(0.5, method=OBC(damping=1e-12)), calibration=[x])
    fitted = np.array([k for k in range(80) if k % 4 != 3])
    for row in range(4):
        keep = found.masks["weight"][row]
        design = np.c_[x[fitted][:, keep].numpy(), np.ones(len(fitted))]
        expected = np.linalg.lstsq(design, layer(x[fitted])[:, row].detach().numpy(), rcond=None)[0]
        np.testing.assert_allclose(found.model.weight[row, keep].detach().numpy(), expected[:-1], atol=1e-6)
        np.testing.assert_allclose(found.model.bias[row].item(), expected[-1], atol=1e-6)


def test_later_layers_make_up_for_earlier_ones() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    data = [torch.randn(400, 16) @ torch.randn(16, 16)]
    errors = [
        output_error(model, sc.sparsify(model, sc.Sparsity(0.7), calibration=data, asymmetric=a).model, data)
        for a in (True, False)
    ]
    assert errors[0] < errors[1]


def test_batches_are_only_parts_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    # Otherwise positions are drawn anew for every batch.
    monkeypatch.setattr(seen, "ROWS_PER_COLUMN", 10**9)
    model, batches = made("convolutions")
    whole = torch.cat(batches)
    one = sc.sparsify(model, sc.Sparsity(0.6), calibration=[whole]).model
    many = sc.sparsify(model, sc.Sparsity(0.6), calibration=list(whole.split(17))).model
    for a, b in zip(one.state_dict().values(), many.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_without_a_dense_model_beside_batch_norms_get_population_moments() -> None:
    model, batches = made("convolutions")
    found = sc.sparsify(model, sc.Sparsity(0.5), calibration=batches, asymmetric=False).model
    with torch.no_grad():
        inputs = found[0](torch.cat(batches)).movedim(1, 0).flatten(1)
    assert torch.allclose(found[1].running_mean, inputs.mean(1), atol=1e-5)
    assert torch.allclose(found[1].running_var, inputs.var(1, correction=0), atol=1e-5)


def test_a_batch_norm_beside_the_dense_model_keeps_the_mean_of_its_outputs() -> None:
    model, batches = made("convolutions")
    found = sc.sparsify(model, sc.Sparsity(0.8), calibration=batches).model
    with torch.no_grad():
        x = torch.cat(batches)
        before, after = (m[1](m[0](x)).mean((0, 2, 3)) for m in (model, found))
    assert torch.allclose(before, after, atol=1e-4)
    alone = sc.sparsify(model, sc.Sparsity(0.8), calibration=batches, recalibrated=False).model
    assert torch.equal(alone[1].running_mean, model[1].running_mean)


def test_plans_survive_json_and_are_done_as_they_say() -> None:
    model, batches = made("attention")
    plan = sc.sparsity_plan(model, sc.Sparsity(0.5, NM(2, 4), SparseGPT(), leave=("cross",)), calibration=batches)
    assert not [name for name in plan.sparsity if name.startswith("cross")]
    again = SparsityPlan.from_json(plan.to_json())
    assert again == plan
    a, b = (sc.sparsify(model, p, calibration=batches) for p in (plan, again))
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))
    assert {w.name for w in a.weights} == set(plan.sparsity)
    with pytest.raises(PlanError, match="not a sparsity plan"):
        SparsityPlan.from_json("{}")
    with pytest.raises(PlanError, match="version 2"):
        SparsityPlan.from_json(plan.to_json().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(PlanError, match="'nothing'"):
        sc.sparsify(model, SparsityPlan({"nothing": 0.5}, Unstructured(), OBC()), calibration=batches)
    with pytest.raises(ArgumentError, match="no weight is left"):
        sc.sparsity_plan(model, sc.Sparsity(0.5, leave=("cross", "block")), calibration=batches)


def test_rows_of_a_packed_projection_are_weights_of_their_own() -> None:
    model, batches = made("attention")
    names = [w.name for w in find_weights(model, Batch((batches[0][:1],), {}, None))]
    assert "cross.in_proj_weight[0:8]" in names
    found = sc.sparsify(
        model, SparsityPlan({"cross.in_proj_weight[0:8]": 0.5}, Unstructured(), OBC()), calibration=batches
    )
    after = found.model.cross.in_proj_weight
    assert int((after[:8] == 0).sum()) == 32
    assert torch.equal(after[8:], model.cross.in_proj_weight[8:])


@pytest.mark.parametrize("elements", [1, 50, 2**16])
def test_a_batch_norm_takes_the_variance_that_comes_closest(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "ELEMENTS", elements)
    torch.manual_seed(0)
    y = torch.randn(200, 3, 4)
    # The old variance, that of the population, and one that undoes noise are the best of their channels.
    x = torch.stack([y[:, 0], y[:, 1] / 4, (y[:, 2] + torch.randn(200, 4)) / 3], dim=1)
    start, gain = torch.zeros(3), torch.ones(3)

    def norm(inputs: Tensor, mean: Tensor, variance: Tensor) -> Norm:
        return Norm(inputs, mean, variance, lambda t: t)

    mean, variance = start.clone(), gain.clone()
    recalibrate([norm(x, mean, variance)], [norm(y, start, gain)])
    slope = [float((x[:, c] * y[:, c]).sum() / x[:, c].square().sum()) for c in range(3)]
    assert [1 / float(v) ** 0.5 for v in variance] == pytest.approx(slope, rel=0.1)
    after = (x - mean[:, None]) / variance[:, None].sqrt()
    assert torch.allclose(after.mean((0, 2)), y.mean((0, 2)), atol=1e-5)


def test_few_samples_decide_on_the_variance_too() -> None:
    y = torch.randn(3, 2, 50, generator=torch.Generator().manual_seed(0))
    start, gain, mean, variance = torch.zeros(2), torch.ones(2), torch.zeros(2), torch.ones(2)
    small, dense = (Norm(x, *moments, lambda t: t) for x, moments in ((y / 4, (mean, variance)), (y, (start, gain))))
    recalibrate([small], [dense])
    assert torch.allclose(variance, torch.full((2,), 1 / 16), rtol=1e-4)


def test_a_channel_that_runs_against_the_dense_one_is_not_silenced() -> None:
    torch.manual_seed(0)
    y = torch.randn(400, 1, 5)
    x = torch.randn(400, 1, 5) - y / 2
    mean, variance = torch.zeros(1), torch.ones(1)
    recalibrate([Norm(x, mean, variance, lambda t: t)], [Norm(y, torch.zeros(1), torch.ones(1), lambda t: t)])
    fitted = x[[k for k in range(400) if k % 4 != 3]]
    assert variance.item() == pytest.approx(float(fitted.var(correction=0)), rel=1e-5)


def test_weights_know_whether_a_batch_norm_follows() -> None:
    model, batches = made("convolutions")
    found = find_weights(model, Batch((batches[0][:1],), {}, None))
    assert [w.is_normed for w in found] == [True, False, False]
    assert [w.name for w in found] == ["0.weight", "3.weight", "6.weight"]


# Allocations


def asked(level: float = 0.6, **more: Any) -> tuple[nn.Module, list[Tensor], sc.Sparsity]:
    model, batches = made("convolutions")
    return model, batches, sc.Sparsity(level, **more)


@pytest.mark.parametrize("allocation", [Uniform(), ERK(), Global("magnitude"), Global("lamp"), OWL(), Measured()])
def test_allocations_make_the_level(allocation: Any) -> None:
    model, batches, wanted = asked(allocation=allocation, method=Masked())
    found = sc.sparsify(model, wanted, calibration=batches)
    assert found.sparsity == pytest.approx(0.6, abs=0.02)
    assert found.sparsity > 0.6 - 2 / sum(w.size for w in found.weights) * len(found.weights)


def test_global_magnitude_is_one_threshold_and_lamp_its_definition() -> None:
    model, batches, wanted = asked(allocation=Global("magnitude"), method=Masked())
    found = sc.sparsify(model, wanted, calibration=batches, recalibrated=False, asymmetric=False)
    kept = torch.cat([p[found.masks[n]].abs() for n, p in model.named_parameters() if n in found.masks])
    gone = torch.cat([p[~found.masks[n]].abs() for n, p in model.named_parameters() if n in found.masks])
    assert gone.max() <= kept.min()
    lamp = sc.sparsity_plan(model, sc.Sparsity(0.6, allocation=Global("lamp")), calibration=batches).sparsity
    scores = {}
    for name in lamp:
        squares = model.get_parameter(name).detach().double().flatten().square()
        scores[name] = torch.stack([s / squares[squares >= s].sum() for s in squares])
    limit = torch.cat(list(scores.values())).sort().values[int(0.6 * sum(map(len, scores.values())))]
    for name, values in scores.items():
        assert lamp[name] == pytest.approx(float((values < limit).double().mean()), abs=2 / len(values))


def test_erk_is_in_proportion_to_dimensions() -> None:
    model, batches, wanted = asked(0.7, allocation=ERK())
    found = sc.sparsity_plan(model, wanted, calibration=batches).sparsity
    density = {
        n: (1 - s) * model.get_parameter(n).numel() / sum(model.get_parameter(n).shape) for n, s in found.items()
    }
    free = [d for n, d in density.items() if found[n] > 0]
    assert max(free) == pytest.approx(min(free))


def test_measured_spares_what_hurts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).double()
    with torch.no_grad():
        # Half of the first layer does nothing to the outputs.
        model[1].weight[:, :4] = 0
    x = [torch.randn(60, 8).double()]
    wanted = sc.Sparsity(0.5, method=Masked(), allocation=Measured(levels=(0.5, 1.0)))
    found = sc.sparsity_plan(model, wanted, calibration=x).sparsity
    assert found["1.weight"] >= 0.5
    met: list[float] = []

    def damage(candidate: nn.Module) -> float:
        zeros = [float((p == 0).double().mean()) for p in candidate.parameters() if p.ndim == 2]
        met.append(zeros[0])
        return zeros[0]

    other = sc.Sparsity(0.5, method=Masked(), allocation=Measured(levels=(0.5, 1.0), damage=damage))
    found = sc.sparsity_plan(model, other, calibration=x).sparsity
    assert found == {"0.weight": 0.0, "1.weight": 1.0}
    assert met == [0.5, 1.0, 0.0, 0.0]


def test_measured_chooses_layers_for_two_of_four() -> None:
    model, batches, wanted = asked(0.3, pattern=NM(2, 4), method=SparseGPT(), allocation=Measured())
    found = sc.sparsity_plan(model, wanted, calibration=batches).sparsity
    assert set(found.values()) == {0.0, 0.5}
    with pytest.raises(ArgumentError, match="one sparsity only"):
        sc.sparsity_plan(model, sc.Sparsity(0.3, NM(2, 4), allocation=ERK()), calibration=batches)


def test_blocks_and_vectors_go_whole_in_models() -> None:
    model, batches, wanted = asked(0.5, pattern=Blocks(2, 1), method=Masked("wanda", refit=True))
    found = sc.sparsify(model, wanted, calibration=batches)
    keep = found.masks["6.weight"].reshape(2, 2, -1)
    assert torch.equal(keep[:, 0], keep[:, 1])


# Held through training


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.AdamW])
def test_zeros_stay_zero_through_training_and_names_come_back(name: str, optimiser: Any) -> None:
    model, batches = made(name)
    found = sc.sparsify(model, sc.Sparsity(0.5, method=Masked()), calibration=batches)
    sparse, order = found.model, list(found.model.state_dict())
    expected = sparse(batches[0])
    params = {n: p for n, p in sparse.named_parameters()}
    assert sc.hold(sparse, found.masks) is sparse
    assert torch.allclose(sparse(batches[0]), expected, atol=1e-6)
    more = {"momentum": 0.9} if optimiser is torch.optim.SGD else {}
    steps = optimiser(sparse.parameters(), lr=0.05, weight_decay=0.1, **more)
    sparse.train()
    for batch in batches:
        steps.zero_grad()
        sparse(batch).square().mean().backward()
        steps.step()
    held = sparse.eval()(batches[0])
    sc.release(sparse)
    assert list(sparse.state_dict()) == order
    assert torch.allclose(sparse(batches[0]), held, atol=1e-6)
    for k, p in sparse.named_parameters():
        assert p is params[k]
        if k in found.masks:
            assert (p[~found.masks[k]] == 0).all()
            assert (p[found.masks[k]] != 0).all()
    copy.deepcopy(sparse)


def test_tied_weights_are_held_under_each_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    sc.hold(model)
    steps = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(5, 4)).square().sum().backward()
    steps.step()
    sc.release(model)
    assert (model[0].weight[:, ::2] == 0).all()
    assert model[0].weight is model[1].weight


def test_masks_that_fit_nothing_are_refused() -> None:
    with pytest.raises(PlanError, match="which has shape"):
        sc.hold(nn.Linear(2, 3), {"weight": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(PlanError, match="does not have"):
        sc.hold(nn.Linear(2, 3), {"w": torch.ones(3, 2, dtype=torch.bool)})
    assert Asked.__doc__
