"""The solver against enumeration, on chains, streams, triangles, branches and several bounds at once."""

import ctypes
import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from secateur.allocation.branching import branch
from secateur.allocation.elimination import elimination_order, least
from secateur.allocation.hub import find_hub, solve_hub
from secateur.allocation.integer import solve_integer
from secateur.allocation.labels import chain_order, solve_chain
from secateur.allocation.lagrange import Relaxed, relax
from secateur.allocation.problem import Problem, fill
from secateur.allocation.solve import solve

SHAPES = {
    "apart": (4, []),
    "chain": (5, [(k, k + 1) for k in range(4)]),
    "crossed chain": (4, [(0, 2), (1, 2), (1, 3)]),
    "two chains": (5, [(0, 1), (2, 4)]),
    "stream": (5, [(0, k) for k in range(1, 5)]),
    "ring": (4, [(0, 1), (1, 2), (2, 3), (0, 3)]),
    "all tied": (4, list(itertools.combinations(range(4), 2))),
    "branch": (5, [(0, 1, 2), (0, 3, 4), (1, 2)]),
}


def problem(shape: str, seed: int, bounds: int) -> Problem:
    rng = np.random.default_rng(seed)
    count, scopes = SHAPES[shape]
    sizes = rng.integers(2, 5, count)
    widths = [np.sort(rng.choice(np.arange(0, 17), size, replace=False))[::-1].astype(float) for size in sizes]
    damages = [np.concatenate([[0.0], np.cumsum(rng.exponential(rng.lognormal(), size - 1))]) for size in sizes]
    costs = []
    for _ in range(bounds):
        # Whole numbers in half of the cases, where sums are exact and ties common.
        weight = (lambda: float(rng.integers(0, 5))) if seed % 2 else rng.random
        parts = [((), np.asarray(weight()))]
        for scope in [*((k,) for k in range(count)), *scopes]:
            table = np.asarray(weight())
            for k in scope:
                table = table[..., None] * widths[k]
            parts.append((scope, table))
        costs.append(parts)
    dense = Problem(damages, costs, np.ones(bounds)).cost((0,) * count)
    return Problem(damages, costs, np.maximum(dense * rng.uniform(0.1, 1, bounds), 1e-3))


def optimum(given: Problem) -> float | None:
    fits = [given.damage(o) for o in itertools.product(*map(range, given.sizes)) if given.fits(o)]
    return min(fits, default=None)


cases = given(st.sampled_from(sorted(SHAPES)), st.integers(0, 10_000), st.integers(1, 3))


@settings(max_examples=150, deadline=None)
@cases
def test_the_solver_finds_the_optimum_within_every_bound(shape: str, seed: int, bounds: int) -> None:
    given = problem(shape, seed, bounds)
    best, found = optimum(given), solve(given, gap=0.0, limit_s=30)
    if best is None:
        assert found is None
        return
    assert found is not None
    assert given.fits(found.levels)
    assert given.damage(found.levels) == pytest.approx(best)
    assert found.bound <= best * (1 + 1e-6) + 1e-9


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(0, 10_000), st.sampled_from([0.0, 0.05]))
def test_around_a_hub_the_optimum_is_found_and_proven(shape: str, seed: int, gap: float) -> None:
    given = problem(shape, seed, 1)
    best, narrowest = optimum(given), tuple(size - 1 for size in given.sizes)
    if best is None or not given.fits(narrowest):
        return
    hub = find_hub(given)
    assert hub is not None
    found, bound = solve_hub(given, hub, narrowest, gap=gap, deadline=time.monotonic() + 30)
    assert given.fits(found)
    assert best - 1e-9 <= given.damage(found) <= best / (1 - gap) + 1e-9
    assert bound <= best * (1 + 1e-6) + 1e-9 and bound >= given.damage(found) * (1 - gap) - 1e-9
    late, below = solve_hub(given, hub, narrowest, gap=gap, deadline=0.0)
    assert given.fits(late) and below <= best * (1 + 1e-6) + 1e-9


def test_what_does_not_fall_apart_has_no_hub() -> None:
    assert find_hub(problem("stream", 0, 2)) is None, "one price for each bound would be needed"
    tied = [np.zeros(40) for _ in range(5)]
    tables = [(scope, np.ones((40, 40))) for scope in itertools.combinations(range(5), 2)]
    assert find_hub(Problem(tied, [tables], np.ones(1))) is None


@settings(max_examples=60, deadline=None)
@cases
def test_the_relaxation_is_below_the_optimum_and_its_choice_fits(shape: str, seed: int, bounds: int) -> None:
    given = problem(shape, seed, bounds)
    narrowest = tuple(size - 1 for size in given.sizes)
    best = optimum(given)
    if best is None or not given.fits(narrowest):
        return
    order = elimination_order(given.sizes, given.scopes)
    assert order is not None
    found = relax(given, lambda parts: least(order, given.sizes, parts), narrowest, np.inf)
    assert found.bound <= best * (1 + 1e-9) + 1e-9
    assert given.fits(found.best)
    filled = fill(given, found.best)
    assert given.fits(filled) and given.damage(filled) <= given.damage(found.best)
    for position in range(len(filled)):
        for level in range(given.sizes[position]):
            other = (*filled[:position], level, *filled[position + 1 :])
            assert given.damage(other) >= given.damage(filled) or not given.fits(other)


@settings(max_examples=60, deadline=None)
@cases
def test_elimination_finds_the_least_sum(shape: str, seed: int, bounds: int) -> None:
    given = problem(shape, seed, bounds)
    parts = list(given.weighted(np.random.default_rng(seed).normal(size=bounds)))
    order = elimination_order(given.sizes, given.scopes)
    assert order is not None
    levels, value = least(order, given.sizes, parts)

    def total(chosen: tuple[int, ...]) -> float:
        return sum(float(table[tuple(chosen[k] for k in scope)]) for scope, table in parts)

    assert value == pytest.approx(total(levels))
    assert value == pytest.approx(min(map(total, itertools.product(*map(range, given.sizes)))))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["apart", "chain", "crossed chain", "two chains"]), st.integers(0, 10_000), st.integers(1, 3))
def test_a_chain_is_solved_exactly_whatever_the_prices(shape: str, seed: int, bounds: int) -> None:
    given = problem(shape, seed, bounds)
    narrowest = tuple(size - 1 for size in given.sizes)
    if not given.fits(narrowest):
        return
    order = chain_order(len(given.sizes), given.scopes)
    assert order is not None
    prices = np.random.default_rng(seed).exponential(size=bounds) / given.bounds
    for multipliers in (np.zeros(bounds), prices):
        levels, proven = solve_chain(given, order, multipliers, narrowest, gap=0.0, deadline=np.inf)
        assert proven and given.fits(levels)
        assert given.damage(levels) == pytest.approx(optimum(given))


@settings(max_examples=25, deadline=None)
@cases
def test_the_integer_program_finds_the_optimum(shape: str, seed: int, bounds: int) -> None:
    given = problem(shape, seed, bounds)
    best = optimum(given)
    levels, bound = solve_integer(given, gap=0.0, limit_s=30)
    if best is None:
        assert levels is None
    else:
        assert levels is not None and given.fits(levels)
        # Drawing the bounds in by two in a million may cost a choice that fits exactly.
        assert bound <= best * (1 + 1e-6) + 1e-9
        assert given.damage(levels) >= best - 1e-9


@settings(max_examples=40, deadline=None)
@cases
def test_branching_finds_the_optimum_and_stops_anywhere_with_a_true_bound(shape: str, seed: int, bounds: int) -> None:
    given = problem(shape, seed, bounds)
    narrowest = tuple(size - 1 for size in given.sizes)
    if not given.fits(narrowest):
        return
    best = optimum(given)
    assert best is not None
    start = Relaxed(0.0, np.zeros(bounds), narrowest)
    levels, bound = branch(given, start, narrowest, gap=0.0, deadline=np.inf)
    assert given.fits(levels) and given.damage(levels) == pytest.approx(best)
    assert bound == pytest.approx(best)
    levels, bound = branch(given, start, narrowest, gap=0.2, deadline=np.inf)
    assert given.fits(levels) and bound <= best * (1 + 1e-9) and given.damage(levels) * 0.8 <= best * (1 + 1e-9)
    levels, bound = branch(given, start, narrowest, gap=0.0, deadline=time.monotonic() + 2e-3)
    assert given.fits(levels) and bound <= best * (1 + 1e-9)


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 5, 8, 13, 21, 34])
def test_branching_may_stop_at_any_look_at_the_clock(looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    restricted = Problem.restricted
    for seed in range(4):
        given = problem("all tied", seed, 1)
        narrowest = tuple(size - 1 for size in given.sizes)
        best = optimum(given)
        if best is None:
            continue
        seen: list[int] = []

        def clock(seen: list[int] = seen) -> int:
            seen.append(len(seen))
            return seen[-1]

        def in_time(self: Problem, *where: int, seen: list[int] = seen) -> Problem:
            assert len(seen) <= looks + 1, "work is begun after the end was seen"
            return restricted(self, *where)

        monkeypatch.setattr(time, "monotonic", clock)
        monkeypatch.setattr(Problem, "restricted", in_time)
        levels, bound = branch(given, Relaxed(0.0, np.zeros(1), narrowest), narrowest, gap=0.0, deadline=looks + 0.5)
        assert given.fits(levels) and bound <= best * (1 + 1e-9)


def test_a_stream_with_many_branches_is_solved_closer_than_by_prices_alone() -> None:
    """No price is right for all widths of the stream at once."""
    rng = np.random.default_rng(0)
    count = 61
    widths = [np.arange(32.0, 0, -2)] + [np.array([1.0, 0.0]) if k % 2 else np.arange(16.0, 0, -2) for k in range(60)]
    damages = [np.concatenate([[0.0], np.cumsum(rng.exponential(1, len(w) - 1))]) for w in widths]
    parts = [((k,), w) for k, w in enumerate(widths)]
    for k in range(1, count - 1, 2):
        parts.append(((0, k, k + 1), 4 * np.einsum("a,b,c->abc", widths[0], widths[k], widths[k + 1])))
    whole = Problem(damages, [parts], np.ones(1))
    given = Problem(damages, [parts], 0.4 * whole.cost((0,) * count))
    order = elimination_order(given.sizes, given.scopes)
    assert order is not None
    narrowest = tuple(size - 1 for size in given.sizes)
    relaxed = relax(given, lambda parts: least(order, given.sizes, parts), narrowest, np.inf)
    found = solve(given, gap=5e-3, limit_s=60)
    assert found is not None and given.fits(found.levels)
    assert found.bound > relaxed.bound * 1.02
    assert given.damage(found.levels) <= found.bound / (1 - 5e-3) * (1 + 1e-9)


def test_chains_are_recognised() -> None:
    for shape, (count, scopes) in SHAPES.items():
        order = chain_order(count, scopes)
        assert (order is not None) == (shape in ("apart", "chain", "crossed chain", "two chains")), shape
        if order is not None:
            assert sorted(order) == list(range(count))
            assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in scopes)


def test_a_clique_that_is_too_large_has_no_order() -> None:
    tied = list(itertools.combinations(range(12), 2))
    assert elimination_order([10] * 12, tied) is None
    assert elimination_order([10] * 12, [(0, k) for k in range(1, 12)]) is not None


def test_out_of_time_the_answer_still_fits_and_the_bound_still_holds() -> None:
    given = problem("all tied", 3, 1)
    best = optimum(given)
    found = solve(given, gap=0.0, limit_s=0.0)
    assert best is not None and found is not None
    assert given.fits(found.levels)
    assert found.bound <= best + 1e-9


def test_a_removal_that_seems_to_cost_nothing_is_made_only_where_it_is_needed() -> None:
    damages = [np.array([0.0, 0.0, 1.0]), np.array([0.0, 2.0, 3.0])]
    costs = [[((0,), np.array([8.0, 4.0, 2.0])), ((1,), np.array([8.0, 4.0, 2.0]))]]
    found = [solve(Problem(damages, costs, np.array([bound]))) for bound in (16.0, 12.0, 11.0, 8.0)]
    assert [f.levels for f in found if f is not None] == [(0, 0), (1, 0), (2, 0), (1, 1)]


def test_more_budget_never_damages_more() -> None:
    given = problem("stream", 8, 1)
    dense = given.cost((0,) * 5)
    damages = []
    for share in np.linspace(0.2, 1.0, 15):
        found = solve(Problem(given.damages, given.costs, dense * share), gap=0.0)
        damages.append(np.inf if found is None else given.damage(found.levels))
    assert (np.diff([d for d in damages if np.isfinite(d)]) <= 1e-9).all()
    assert damages[-1] == 0


def test_the_integer_program_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    # HiGHS 1.12 prints a line at this one where it is presolved.
    rng = np.random.default_rng(28)
    count, levels = 10, 9
    drawn = [tuple(rng.choice(count, 2, replace=False)) for _ in range(4)]
    pairs = [*((k, k + 1) for k in range(count - 1)), (0, count - 1), *(tuple(sorted(map(int, two))) for two in drawn)]
    widths = [np.round(w * np.linspace(1, 0.1, levels)) for w in rng.choice([16, 32, 64, 128, 256], count)]
    damages = [
        np.concatenate([[0.0], np.cumsum(rng.exponential(rng.lognormal(), levels - 1) ** 3)]) for _ in range(count)
    ]
    costs = []
    for _ in range(2):
        parts = [((), np.asarray(float(rng.integers(0, 5))))]
        for scope in [*((k,) for k in range(count)), *dict.fromkeys(pairs)]:
            table = np.asarray(float(rng.integers(0, 900)))
            for k in scope:
                table = table[..., None] * widths[k]
            parts.append((scope, table))
        costs.append(parts)
    dense = Problem(damages, costs, np.ones(2)).cost((0,) * count)
    found, _ = solve_integer(Problem(damages, costs, dense * rng.uniform(0.2, 0.7, 2)), gap=1e-6, limit_s=30)
    # What C has printed lies in a buffer of its own.
    ctypes.CDLL(None).fflush(None)
    assert found is not None and capfd.readouterr().out == ""
