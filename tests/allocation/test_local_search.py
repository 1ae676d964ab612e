"""Local search on damages whose interactions are known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from secateur.allocation.allocate import allocate
from secateur.allocation.local_search import refine
from secateur.allocation.objectives import LeastDamage
from secateur.errors import ArgumentError, MetricError
from secateur.graph.polynomial import Polynomial
from secateur.types import Curve

NAMES = ("a", "b", "c", "d")
WIDTHS = (8, 6, 4, 2)
COST = Polynomial({("a", "b"): 1.0, ("b", "c"): 2.0, ("c", "d"): 1.0}, dict.fromkeys(NAMES, 8))


def scene(seed: int):
    rng = np.random.default_rng(seed)
    curves = {}
    for name in NAMES:
        damage = np.concatenate([[0.0], np.cumsum(rng.exponential(1, 3))])
        table = np.repeat(damage[:, None], 2, axis=1)
        curves[name] = Curve(name, WIDTHS, tuple(1 - w / 8 for w in WIDTHS), table, table)
    bonds = {pair: rng.normal(0, 0.5) for pair in itertools.combinations(NAMES, 2)}

    def joint(widths) -> float:
        level = {n: WIDTHS.index(widths[n]) for n in NAMES}
        single = sum(curves[n].damage[level[n], 0] for n in NAMES)
        return float(single + sum(bond * level[a] * level[b] for (a, b), bond in bonds.items()))

    return curves, joint


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.15, 1.0))
def test_the_search_ends_where_no_swap_is_better_and_never_exceeds_the_budget(seed: int, share: float) -> None:
    curves, joint = scene(seed)
    budget = share * COST({})
    start = allocate(curves, COST, budget)
    asked = []

    def measure(widths):
        assert COST(widths) <= budget
        asked.append(tuple(widths.items()))
        return joint(widths), 0.0

    found = refine(start, curves, COST, budget, measure=measure, measurements=10_000)
    assert len(asked) == len(set(asked)) == len(found.steps) + 1
    assert found.start == (joint(start.widths), 0.0)
    assert found.damage == joint(found.allocation.widths) <= found.start[0]
    assert found.interaction == pytest.approx(found.damage - found.allocation.damage)
    assert found.allocation.cost == COST(found.allocation.widths)
    levels = found.allocation.levels
    for a, b in itertools.permutations(NAMES, 2):
        for wider, narrower in ((1, 1), (1, 0), (0, 1)):
            after = {**levels, a: levels[a] - wider, b: levels[b] + narrower}
            if after[a] >= 0 and after[b] < len(WIDTHS):
                widths = {n: WIDTHS[k] for n, k in after.items()}
                assert COST(widths) > budget or joint(widths) >= found.damage
    kept = [step.damage for step in found.steps if step.kept]
    assert kept == sorted(kept, reverse=True)


def test_single_damages_are_added_up_in_the_unit_that_is_measured() -> None:
    losses, _ = scene(1)
    metrics, joint = scene(2)
    both = {name: replace(losses[name], damage=metrics[name].damage) for name in NAMES}
    budget = 0.4 * COST({})
    first = {}
    for of, other, own in (("loss", "metric", losses), ("metric", "loss", metrics)):
        start = allocate(both, COST, budget, objective=LeastDamage(of))
        found = refine(start, both, COST, budget, measure=lambda widths: (joint(widths), 0.0), of=of)
        single = sum(own[name].damage[level, 0] for name, level in found.allocation.levels.items())
        assert found.allocation.damage == pytest.approx(single)
        assert found.interaction == pytest.approx(joint(found.allocation.widths) - single)
        assert found.allocation.bound == start.bound > 0
        elsewhere = allocate(both, COST, budget, objective=LeastDamage(other))
        search = refine(elsewhere, both, COST, budget, measure=lambda widths: (1.0, 0.0), of=of, measurements=2)
        # The bound was of the other unit; what promises most in this one comes first.
        assert search.allocation.bound == 0
        first[of] = search.steps[0]
        assert first[of] == refine(elsewhere, own, COST, budget, measure=lambda w: (1.0, 0.0), measurements=2).steps[0]
    assert first["loss"] != first["metric"]
    with pytest.raises(ArgumentError, match="of='accuracy' is not known"):
        refine(start, both, COST, budget, measure=lambda widths: (1.0, 0.0), of="accuracy")  # type: ignore[arg-type]


def test_measurements_are_limited_and_noise_is_not_followed() -> None:
    curves, joint = scene(3)
    budget = 0.4 * COST({})
    start = allocate(curves, COST, budget)
    calls = []

    def measure(widths):
        calls.append(widths)
        return joint(widths), 100.0

    assert refine(start, curves, COST, budget, measure=measure, measurements=5).steps[-1] is not None
    assert len(calls) == 5
    careful = refine(start, curves, COST, budget, measure=measure, standard_errors=1.0)
    assert careful.allocation.widths == start.widths and careful.allocation.bound == start.bound
    with pytest.raises(ArgumentError, match="at least 1"):
        refine(start, curves, COST, budget, measure=measure, measurements=0)
    with pytest.raises(ArgumentError, match="measurements='all' must be a number"):
        refine(start, curves, COST, budget, measure=measure, measurements="all")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="standard_errors=-1"):
        refine(start, curves, COST, budget, measure=measure, standard_errors=-1.0)
    with pytest.raises(MetricError, match=r"measure gave 3\.0"):
        refine(start, curves, COST, budget, measure=lambda widths: 3.0)  # type: ignore[arg-type,return-value]
    with pytest.raises(ArgumentError, match="not within the budget"):
        refine(start, curves, COST, start.cost / 2, measure=measure)
    with pytest.raises(MetricError, match="NaN"):
        refine(start, curves, COST, budget, measure=lambda widths: (float("nan"), 0.0))
