"""One way among several is chosen by damage out of fold; local search and front are told."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.pipeline.aims import OBJECTIVES, objective_of


class Net(nn.Module):
    """Units 0 to 5 of each layer decide; all others are noise of large weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        with torch.no_grad():
            for layer in (self.b, self.head):
                layer.weight[:, 6:] *= 1e-4
            for layer in (self.a, self.b):
                layer.weight[6:] *= 30

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))))


X = torch.randn(240, 6, generator=torch.Generator().manual_seed(1))
NET = Net().eval()
Y = NET(X).argmax(1)
DATA = {"calibration": [(X[:120], Y[:120])], "validation": list(zip(X.split(60), Y.split(60), strict=True))}
QUICK = {"sparsities": (0.25, 0.5), "folds": 3, "repair": False}


def pruned(**wishes) -> sc.Result:
    return sc.prune(NET, (X[:4],), **DATA, **QUICK, **wishes)


def test_the_criterion_that_keeps_what_matters_is_chosen() -> None:
    result = pruned(budget=sc.Budget(macs=0.45), criteria=[sc.Random(3), sc.Taylor()], objectives=["least damage"])
    assert result.selection is not None
    assert result.selection.name == "Taylor(change='squared'), least damage"
    asked = dict(result.report_data.asked)
    assert asked["criterion"].startswith("Taylor") and asked["objective"] == "least damage"
    assert result.damage.mean < 0.05
    assert result.report_data.choices == [result.selection.reason]
    assert "inf" not in result.selection.reason and "Random(seed=3)" in result.selection.reason
    assert {"random (control)", "uniform-magnitude (control)"} <= result.selection.choices.keys()
    damages = {name: choice.damage for name, choice in result.selection.choices.items()}
    assert damages[result.selection.name] == min(damages.values())


def test_under_a_tolerance_the_way_wins_that_prunes_most() -> None:
    result = pruned(tolerance=0.02, criteria=[sc.Magnitude(1), sc.Taylor()], controls=())
    assert result.selection is not None
    choices = result.selection.choices
    assert set(choices) == {"Magnitude(p=1), least damage", "Taylor(change='squared'), least damage"}
    best = min(choices, key=lambda name: (choices[name].budget, choices[name].damage))
    assert result.selection.name == best and choices[best].damage + choices[best].standard_error <= 0.02
    assert result.report_data.thresholds.chosen == choices[best].budget < 1


def rough(samples: int, **wishes) -> sc.Result:
    """A network that needs all of its units, on few samples: damages are large, and folds disagree."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape) * (parameter.ndim > 1)
    data = [(X[:samples], net(X[:samples]).argmax(1))]
    more = {**QUICK, "sparsities": (0.25, 0.5, 0.75), "front": False, "controls": (), "tolerance": 0.1}
    return sc.prune(net, (X[:4],), calibration=data, validation=data, **{**more, **wishes})


def test_more_standard_errors_prune_less_in_the_choice_and_in_rounds() -> None:
    found = {errors: rough(240, standard_errors=errors) for errors in (1.0, 3.0)}
    chosen = {errors: result.report_data.thresholds for errors, result in found.items()}
    assert chosen[3.0].chosen > chosen[1.0].chosen
    at = chosen[3.0].budgets.index(chosen[3.0].chosen)
    assert chosen[3.0].damage[at] + 3 * chosen[3.0].standard_error[at] <= 0.1
    assert chosen[3.0].damage[at + 1] + 3 * chosen[3.0].standard_error[at + 1] > 0.1
    assert "plus 3 standard errors" in chosen[3.0].reason
    assert [r.reason for r in found[3.0].report_data.rounds] == [
        "damage plus 3 standard errors is within the tolerance"
    ]
    several = rough(240, standard_errors=3.0, objectives=["least damage", "equal damage"])
    assert several.selection is not None and "plus 3 standard errors" in several.selection.reason


def test_folds_are_drawn_as_often_as_is_asked_for() -> None:
    damages = {}
    for repeats in (1, 3):
        result = rough(
            40, repeats=repeats, objectives=["least damage", "equal damage"], folds=2, sparsities=(0.1, 0.2, 0.3, 0.4)
        )
        assert result.selection is not None
        picture, shown = result.selection.pictures[result.selection.name], result.report_data.thresholds
        seen = dict(zip(shown.budgets, shown.damage, strict=True))
        # Both cross-validations draw the same folds.
        assert {b: m for b, m in zip(picture.budgets, picture.mean, strict=True) if b in seen} == pytest.approx(seen)
        damages[repeats] = shown.damage
    assert damages[1] != pytest.approx(damages[3])


@pytest.mark.parametrize(
    "wrong", [{"repeats": 0}, {"repeats": 1.5}, {"repeats": float("inf")}, {"standard_errors": -1.0},
              {"standard_errors": float("inf")}, {"standard_errors": "two"}]
)  # fmt: skip
def test_a_rule_that_means_nothing_is_named_before_anything_is_measured(wrong) -> None:
    with pytest.raises(sc.ArgumentError, match=f"{next(iter(wrong))}="):
        sc.prune(NET, (), validation=None, calibration=[], tolerance=0.1, **wrong)


def test_objectives_by_name_and_one_of_the_users_own() -> None:
    scores = {"a": torch.arange(4.0)}
    names = ["LeastDamage", "EqualDamage", "GlobalThreshold", "UniformDensity"]
    assert [type(objective_of(name, scores)).__name__ for name in OBJECTIVES] == names
    assert pruned(budget=sc.Budget(macs=0.5), objectives=["uniform"], front=False).selection is None
    result = pruned(budget=sc.Budget(macs=0.5), objectives=[sc.EqualDamage(of="metric")], front=False, controls=())
    assert dict(result.report_data.asked)["objective"] == "EqualDamage(of='metric')"
    with pytest.raises(sc.ArgumentError, match="objective 'steepest' is not known"):
        pruned(budget=sc.Budget(macs=0.5), objectives=["steepest"])
    with pytest.raises(sc.ArgumentError, match="not both"):
        pruned(budget=sc.Budget(macs=0.5), criterion=sc.Taylor(), criteria=[sc.Taylor()])


def test_local_search_does_no_worse_and_is_told() -> None:
    plain = pruned(budget=sc.Budget(macs=0.4), front=False, controls=())
    searched = pruned(budget=sc.Budget(macs=0.4), front=False, controls=(), local_search=12)
    loss = nn.CrossEntropyLoss()
    assert loss(searched.model(X), Y) <= loss(plain.model(X), Y) + 1e-6
    reason = searched.report_data.rounds[-1].reason
    assert "local search: " in reason and "interaction is" in reason
    assert "local search" not in plain.report_data.rounds[-1].reason
    assert (
        sc.measure(searched.model, (X[:4],), latency=False).macs <= 0.4 * sc.measure(NET, (X[:4],), latency=False).macs
    )


def test_the_front_is_measured_and_told() -> None:
    result = pruned(budget=sc.Budget(macs=0.5), controls=())
    assert result.front is not None and result.report_data.front is not None
    points = result.report_data.front.points
    assert len(points) == len(result.front.points) > 3
    [chosen] = [p for p in points if p.is_chosen]
    plan = {name: len(kept) for name, kept in result.plan.keep.items()}
    assert {name: after for name, _, after in chosen.widths} == plan
    macs = sc.measure(result.model, (X[:4],), latency=False).macs / sc.measure(NET, (X[:4],), latency=False).macs
    assert dict(chosen.costs)["MACs"] == pytest.approx(macs)
    right = (result.model(X).argmax(1) == Y).double().mean().item()
    assert chosen.damage == pytest.approx(1 - right)
    # Predicted in the unit of the damage: the accuracy that each group alone would lose.
    for point, shown in zip(result.front.points, points, strict=True):
        alone = sum(result.curves[name].mean()[level] for name, level in point.allocation.levels.items())
        assert shown.predicted == point.predicted == pytest.approx(alone)
    assert pruned(budget=sc.Budget(macs=0.5), controls=(), front=False).front is None
