"""The descent under a tolerance, on rounds that are made up: any share under a limit breaks the tolerance."""

from types import SimpleNamespace

import pytest

from secateur.errors import BudgetError
from secateur.pipeline import search
from secateur.pipeline.rounds import Round
from secateur.pipeline.task import Damage
from secateur.surgery.plan import Plan

EMPTY = Plan({}, {})


def descended(monkeypatch: pytest.MonkeyPatch, targets: list[float], *, limit: float, least: float = 0.0):
    def run_round(task, scene, allocator, *, number, target, before, directory):
        if target < least:
            raise BudgetError("out of reach")
        damage = Damage(1.0 if target < limit else 0.0, 0.0)
        return Round(number, target, target, target, None, EMPTY, damage, None, None)

    monkeypatch.setattr(search, "run_round", run_round)
    monkeypatch.setattr(search, "set_scene", lambda task, model: model)
    task = SimpleNamespace(model=None, run_dir=None)
    return search.descend_guarded(task, targets, tolerance=0.01, first="scene", curves={})


def test_a_step_that_fails_is_halved_until_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = descended(monkeypatch, [0.8, 0.4, 0.1, 0.05], limit=0.25)
    assert [r.target for r in found.rounds] == pytest.approx([0.8, 0.4, 0.1, 0.2, 0.08**0.5])
    assert found.kept == (1, 2, 5) and found.best is found.rounds[-1]
    assert "rolled back" in found.reasons[3] and "within" in found.reasons[5]


def test_halving_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    found = descended(monkeypatch, [0.9, 0.01], limit=0.89)
    assert len(found.rounds) == 2 + search.HALVINGS and found.kept == (1,)
    near = descended(monkeypatch, [0.5, 0.49], limit=0.5)
    assert len(near.rounds) == 2, "half of a small step is not worth a round"
    nothing = descended(monkeypatch, [0.9], limit=1.0)
    assert nothing.best is None and nothing.kept == ()


def test_what_is_out_of_reach_ends_the_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    found = descended(monkeypatch, [1.0, 0.5, 0.1, 0.05], limit=0.0, least=0.2)
    assert [r.target for r in found.rounds] == [0.5] and found.kept == (1,)


def test_a_round_is_within_the_tolerance_by_so_many_standard_errors() -> None:
    damage = Damage(0.5, 0.25)
    assert damage.is_within(0.75) and not damage.is_within(0.74)
    assert damage.is_within(1.0, 2.0) and not damage.is_within(0.99, 2.0) and damage.is_within(0.5, 0.0)
    assert not Damage(float("nan"), 0.0).is_within(1.0)
