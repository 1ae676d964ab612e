"""Criteria against plain loops and closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from criteria.cases import base, convolved, labelled, measured, readers
from criteria.oracle import design_of, inputs_and_outputs, losses, statistics_of
from secateur.capture.gram import Gram
from secateur.criteria.activations import ActivationNorm, ActiveShare, MeanActivation
from secateur.criteria.curvature import KFAC, OBD, HessianTrace, damage
from secateur.criteria.energy import RIA, ActivationVariance, Wanda, WandaGroup
from secateur.criteria.gradients import SNIP, FisherGate, Gradient, SecondOrderTaylor, Taylor
from secateur.criteria.magnitude import LAMP, BatchNormScale, GeometricMedian
from secateur.criteria.obs import OBS
from secateur.criteria.statistics import Statistics
from secateur.errors import ArgumentError

DTYPE = torch.float64


def activations() -> torch.Tensor:
    model, (x, _) = readers(), labelled()
    return inputs_and_outputs(model, model.a, x)[0]


def weights(*names: str) -> list[torch.Tensor]:
    return [base()[1].weights[name] for name in names]


def test_lamp_is_the_share_of_squares_that_are_not_smaller() -> None:
    weight = torch.tensor([[3.0, -1.0, 0.0], [1.0, 2.0, -3.0]], dtype=DTYPE)
    expected = torch.zeros_like(weight)
    for i in range(2):
        for j in range(3):
            square = float(weight[i, j] ** 2)
            total = sum(float(v) ** 2 for v in weight.flatten() if float(v) ** 2 >= square)
            expected[i, j] = square / total
    torch.testing.assert_close(LAMP().weights("w", Statistics({"w": weight})), expected)


def test_geometric_median_is_the_sum_of_distances_between_filters() -> None:
    group, statistics = base()
    (make,) = weights("make.weight")
    expected = [sum(float((make[i] - make[j]).square().sum()) ** 0.5 for j in range(6)) for i in range(6)]
    torch.testing.assert_close(GeometricMedian()(group, statistics), torch.tensor(expected, dtype=DTYPE))


def test_batch_norm_scale_is_the_gain() -> None:
    group, statistics = base()
    torch.testing.assert_close(BatchNormScale()(group, statistics), statistics.weights["norm.weight"].abs())


def test_activations_are_counted_and_averaged() -> None:
    h = activations()
    close = torch.testing.assert_close
    close(MeanActivation()(*base()), h.abs().mean(0))
    close(MeanActivation(signed=True)(*base()), h.mean(0))
    close(ActiveShare()(*base()), (h != 0).double().mean(0))
    close(ActivationNorm()(*base()), h.square().mean(0).sqrt())
    assert 0.2 < float((h == 0).double().mean()) < 0.8


def test_channels_are_averaged_over_the_taps_that_read_them() -> None:
    model, (x, y) = convolved(), labelled(8, (2, 6, 6))
    group, statistics = measured(model, x, y)
    inputs = inputs_and_outputs(model, model.read, x)[0]
    taps = design_of(model.read, inputs)[:, 0].reshape(-1, 6, 9)
    torch.testing.assert_close(MeanActivation()(group, statistics), taps.abs().mean((0, 2)))


def test_wanda_and_its_groups_are_loops_over_inputs() -> None:
    h = activations()
    a, b = weights("a.weight", "b.weight")
    expected = torch.stack(
        [a[r].abs() * torch.stack([h[:, j].square().mean().sqrt() for j in range(6)]) for r in range(3)]
    )
    torch.testing.assert_close(Wanda().weights("a.weight", base()[1]), expected)
    added = [sum(float((h[:, j : j + 1] * w[:, j]).square().sum(1).mean()) for w in (a, b)) for j in range(6)]
    torch.testing.assert_close(WandaGroup()(*base()), torch.tensor(added, dtype=DTYPE))


def test_ria_is_relative_to_row_and_column() -> None:
    h, (a,) = activations(), weights("a.weight")
    size, norm = a.abs(), activations().square().mean(0).sqrt()
    for r in range(3):
        for j in range(6):
            share = size[r, j] / size[r].sum() + size[r, j] / size[:, j].sum()
            found = RIA(power=0.3).weights("a.weight", base()[1])[r, j]
            torch.testing.assert_close(found, share * norm[j] ** 0.3)
    assert h.shape == (30, 6)


def test_activation_variance_is_the_error_that_a_bias_leaves() -> None:
    h = activations()
    expected = torch.zeros(6, dtype=DTYPE)
    for w in weights("a.weight", "b.weight"):
        for j in range(6):
            removed = h.clone()
            removed[:, j] = h[:, j].mean()
            expected[j] += ((h - removed) @ w.T).square().sum(1).mean()
    torch.testing.assert_close(ActivationVariance()(*base()), expected)


def test_activation_variance_of_a_constant_unit_is_zero() -> None:
    model, (x, y) = readers(), labelled()
    model.norm.weight.data[3], model.norm.bias.data[3] = 0.0, 2.0
    group, statistics = measured(model, x, y)
    assert ActivationVariance()(group, statistics)[3].item() == pytest.approx(0, abs=1e-12)
    assert WandaGroup()(group, statistics)[3].item() > 0.1


def per_sample_gradients(model: nn.Module, name: str) -> torch.Tensor:
    x, y = labelled()
    parameter = dict(model.named_parameters())[name]
    return torch.stack(
        [torch.autograd.grad(losses(model(x[i : i + 1]), y[i : i + 1]).sum(), parameter)[0] for i in range(len(x))]
    )


def test_gradient_criteria_are_means_over_samples() -> None:
    model, (_, statistics) = readers(), base()
    g, w = per_sample_gradients(model, "make.weight"), model.make.weight.detach()
    close = torch.testing.assert_close
    close(Gradient().weights("make.weight", statistics), g.abs().mean(0))
    close(SNIP().weights("make.weight", statistics), (w * g.mean(0)).abs())
    close(Taylor().weights("make.weight", statistics), (w * g).square().mean(0))
    close(Taylor("absolute").weights("make.weight", statistics), (w * g).abs().mean(0))
    close(OBD("fisher").weights("make.weight", statistics), (w * g).square().mean(0) / 2)


def gated_gradients() -> torch.Tensor:
    """Derivatives of each sample's loss by a gate on each unit: (samples, units)."""
    model, (x, y) = readers(), labelled()
    gates = torch.ones(len(x), 6, dtype=DTYPE, requires_grad=True)
    h = torch.relu(model.norm(model.make(x))) * gates
    return torch.autograd.grad(losses(model.a(h) * torch.sigmoid(model.b(h)), y).sum(), gates)[0]


def test_gates_give_taylor_in_both_aggregations_and_fisher() -> None:
    g = gated_gradients()
    close = torch.testing.assert_close
    close(Taylor()(*base()), g.square().mean(0))
    close(Taylor("absolute")(*base()), g.abs().mean(0))
    close(FisherGate()(*base()), g.square().mean(0) / 2)


def test_snip_sums_over_all_that_a_unit_owns() -> None:
    group, statistics = base()
    own = SNIP()
    vectors = sum(own.weights(name, statistics) for name in ("make.bias", "norm.weight", "norm.bias"))
    readers_ = sum(own.weights(name, statistics).sum(0) for name in ("a.weight", "b.weight"))
    expected = own.weights("make.weight", statistics).sum(1) + vectors + readers_
    torch.testing.assert_close(own(group, statistics), expected)


def test_obd_reads_the_hessian_and_takes_negative_curvature_for_none() -> None:
    group, statistics = base()
    expected = torch.zeros(6, dtype=DTYPE)
    for name in ("a.weight", "b.weight"):
        diagonal, w = statistics.hessian_diagonal[name], statistics.weights[name]
        for j in range(6):
            expected[j] += sum(max(float(diagonal[r, j]), 0.0) * float(w[r, j]) ** 2 / 2 for r in range(3))
    torch.testing.assert_close(OBD()(group, statistics), expected)
    assert any(bool((d < 0).any()) for d in statistics.hessian_diagonal.values())


def test_hessian_trace_is_mean_curvature_times_squared_norm() -> None:
    group, statistics = base()
    expected = torch.zeros(6, dtype=DTYPE)
    for name in ("a.weight", "b.weight"):
        trace = statistics.hessian_diagonal[name].sum(0)
        expected += (trace / 3).clamp(min=0) * statistics.weights[name].square().sum(0) / 2
    torch.testing.assert_close(HessianTrace()(group, statistics), expected)


def linear_regression() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return nn.Linear(4, 3).double(), torch.randn(9, 4, dtype=DTYPE), torch.randn(9, 3, dtype=DTYPE)


def test_second_order_taylor_is_exact_for_a_weight_of_a_linear_model_with_squared_loss() -> None:
    model, x, y = linear_regression()
    predicted = SecondOrderTaylor().weights("weight", statistics_of(model, [], x, y))
    dense = losses(model(x), y).mean()
    for r in range(3):
        for j in range(4):
            weight = model.weight.detach().clone()
            weight[r, j] = 0
            removed = losses(functional_call(model, {"weight": weight}, (x,)), y).mean()
            torch.testing.assert_close(predicted[r, j], (removed - dense).detach())


def test_kfac_of_one_sample_is_the_exact_fisher_quadratic() -> None:
    model, (x, y) = readers(), labelled(1)
    group, statistics = measured(model, x, y)
    g = torch.autograd.grad(losses(model(x), y).sum(), [model.a.weight, model.b.weight])
    expected = sum(
        (gw * w.detach()).sum(0).square() / 2 for gw, w in zip(g, (model.a.weight, model.b.weight), strict=True)
    )
    torch.testing.assert_close(KFAC()(group, statistics), expected)
    change = torch.randn(3, 6, dtype=DTYPE)
    reader = next(c for c in statistics.consumers if c.place.name == "a.weight")
    assert damage(reader, change[None], statistics) == pytest.approx(float((g[0] * change).sum()) ** 2 / 2)
    single = (g[0] * model.a.weight.detach()).square() / 2
    torch.testing.assert_close(KFAC().weights("a.weight", statistics), single)


def test_kfac_of_a_unit_is_the_damage_of_its_columns() -> None:
    model, (x, y) = convolved(), labelled(8, (2, 6, 6))
    group, statistics = measured(model, x, y)
    reader = next(c for c in statistics.consumers if c.place.name == "read.weight")
    for unit in range(6):
        change = torch.zeros_like(statistics.weights["read.weight"])
        change[:, unit] = -statistics.weights["read.weight"][:, unit]
        expected = damage(reader, reader.form.matrix(change), statistics)
        assert float(KFAC()(group, statistics)[unit]) == pytest.approx(expected)


def with_gram(statistics: Statistics, mean: torch.Tensor) -> Statistics:
    found = tuple(
        replace(c, gram=Gram(mean[None], 1)) if c.place.name == "a.weight" else c for c in statistics.consumers
    )
    return replace(statistics, consumers=found)


def test_obs_is_the_least_error_without_the_weight() -> None:
    model, (x, _) = readers(), labelled()
    h = inputs_and_outputs(model, model.a, x)[0]
    found = OBS(damping=0).weights("a.weight", base()[1])
    outputs = h @ model.a.weight.detach().T
    for j in range(6):
        kept = torch.cat([h[:, [k for k in range(6) if k != j]], torch.ones(len(h), 1, dtype=DTYPE)], dim=1)
        fit = kept @ torch.linalg.lstsq(kept, outputs).solution
        torch.testing.assert_close(found[:, j], (outputs - fit).square().mean(0))


def test_obs_of_inputs_that_do_not_correlate_is_wanda_squared() -> None:
    squares = torch.tensor([1.0, 4.0, 9.0, 0.25, 2.0, 3.0, 1.0], dtype=DTYPE)
    statistics = with_gram(base()[1], torch.diag(squares))
    expected = statistics.weights["a.weight"].square() * squares[:6]
    torch.testing.assert_close(OBS(damping=0).weights("a.weight", statistics), expected)


def test_weights_that_no_map_reads_are_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"of 'make.bias', of shape \(6,\), 0 rows were seen"):
        Wanda().weights("make.bias", base()[1])


def test_a_wrong_option_is_refused() -> None:
    for wrong in (lambda: Taylor("cubed"), lambda: OBD("exact"), lambda: OBS(damping=-1)):
        with pytest.raises(ArgumentError):
            wrong()


def test_several_uses_of_a_weight_add_up() -> None:
    statistics = base()[1]
    twice = replace(statistics, consumers=(*statistics.consumers, *statistics.consumers))
    once = WandaGroup().weights("a.weight", statistics)
    torch.testing.assert_close(WandaGroup().weights("a.weight", twice), 2 * once)


def test_negative_mean_curvature_counts_as_none() -> None:
    group, statistics = base()
    flipped = {name: -values for name, values in statistics.hessian_diagonal.items()}
    found = HessianTrace()(group, replace(statistics, hessian_diagonal=flipped))
    assert bool((found >= 0).all()) and bool((HessianTrace()(group, statistics) > 0).any())


def test_units_that_masking_leaves_are_measured_by_all_that_they_own() -> None:
    """Experts: what chooses them reads no slice of theirs."""
    group, statistics = base()
    unmasked = replace(group, slices=tuple(replace(s, masked=False) for s in group.slices))
    torch.testing.assert_close(
        OBD("fisher")(unmasked, statistics),
        sum(
            statistics.weights[s.parameter]
            .square()
            .mul(statistics.gradients[s.parameter].squares)
            .movedim(s.dim, 0)
            .reshape(6, -1)
            .sum(1)
            / statistics.samples
            / 2
            for s in group.slices
            if s.trained
        ),
    )
