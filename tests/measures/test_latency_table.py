"""Latency by operators: their calls are those of the cut model; the table is exact where it was timed."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

import secateur as sc
from networks import CASES, built
from secateur.allocation.allocate import allocate
from secateur.allocation.objectives import LeastDamage
from secateur.errors import ArgumentError
from secateur.graph.groups import structure
from secateur.measures.latency import time_calls
from secateur.measures.latency_table import LatencyTable, Table, build_table
from secateur.measures.operators import Call, Shaped, operators
from secateur.surgery.plan import plan_widths
from secateur.types import Curve, Status


def narrowed(groups, share: float) -> dict[str, int]:
    return {
        g.name: max(g.minimum, g.multiple_of, math.ceil(share * g.width / g.multiple_of) * g.multiple_of)
        for g in groups
    }


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_calls_at_other_widths_are_those_of_the_cut_model(case) -> None:
    model, args = built(case), (case.inputs(2),)
    program = sc.trace(model, args)
    groups = sc.find_groups(program)
    widths = narrowed(groups, 0.6)
    scores = {g.name: torch.arange(g.size, dtype=torch.float64) for g in groups}
    small = sc.cut(model, plan_widths(groups, scores, widths), program=program)
    wanted = [operator.at({}).key for operator in operators(structure(sc.trace(small, args)))]
    calls = [operator.at(widths) for operator in operators(structure(program))]
    found = [call.key for call in calls]
    assert found == wanted
    assert None not in time_calls(calls, blocks=1, block_s=1e-6)


def seconds_of(call: Call) -> float | None:
    """A machine on which a call takes a microsecond and one more for a thousand elements of its operands."""
    shapes = [leaf.shape for leaf in torch.utils._pytree.tree_leaves((call.args, call.kwargs)) if type(leaf) is Shaped]
    return 1e-6 + 1e-9 * sum(math.prod(shape) for shape in shapes)


class Net(nn.Module):
    """A stream with two branches, and a concatenation of five layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.parts = nn.ModuleList(nn.Linear(8, 6) for _ in range(5))
        self.head = nn.Linear(30, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(torch.cat([part(x) for part in self.parts], 1))


@functools.cache
def traced() -> sc.Program:
    return sc.trace(Net().eval(), (torch.zeros(16, 4),))


def built_table(grid_of) -> tuple[LatencyTable, tuple[sc.Group, ...]]:
    program = traced()
    groups = sc.find_groups(program)
    grid = {g.name: grid_of(g.width) for g in groups}
    return build_table(structure(program), grid, lambda calls: [seconds_of(call) for call in calls]), groups


def summed(widths: dict[str, int]) -> float:
    """What the machine takes for all calls of the network."""
    return sum(seconds_of(operator.at(widths)) for operator in operators(structure(traced())))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_table_is_never_below_the_sum_of_calls_and_its_parts_add_up_to_it(data) -> None:
    table, groups = built_table(lambda width: range(1, width + 1, 2))
    widths = {g.name: data.draw(st.integers(1, g.width)) for g in groups}
    levels = {g.name: [g.width, widths[g.name]] for g in groups}
    parts = table.parts(levels)
    total = sum(float(part[tuple(1 for _ in scope)]) for scope, part in parts)
    assert table(widths) == pytest.approx(total)
    assert table(widths) >= summed(widths) * (1 - 1e-6)
    assert len({scope for scope, _ in parts}) == len(parts)


def test_a_table_is_the_sum_of_calls_at_the_widths_that_were_timed() -> None:
    table, groups = built_table(lambda width: (width, width // 2))
    for share in (1, 2):
        widths = {g.name: g.width // share for g in groups}
        # What the concatenation's five groups share is priced by elements, as this machine does.
        assert table(widths) == pytest.approx(summed(widths), rel=1e-6)
    assert table({}) == pytest.approx(summed({}), rel=1e-6)


@functools.cache
def chain() -> sc.Program:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return sc.trace(net.eval(), (torch.zeros(16, 3),))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1_000), st.floats(0.5, 1))
def test_allocation_within_a_latency_is_that_of_enumeration(seed: int, share: float) -> None:
    program = chain()
    groups = sc.find_groups(program)
    grid = (8, 6, 3, 1)
    table = build_table(structure(program), dict.fromkeys(("0", "2"), grid), lambda calls: list(map(seconds_of, calls)))
    cost = sc.costs(program, groups, latency=table.fitted([({}, 3 * table({}))]))
    rng = np.random.default_rng(seed)
    rows = {g.name: np.concatenate([[0], np.cumsum(rng.exponential(1, 3))])[:, None].repeat(2, 1) for g in groups}
    curves = {n: Curve(n, grid, tuple(1 - w / 8 for w in grid), d, d) for n, d in rows.items()}
    found = allocate(curves, cost, sc.Budget(latency=share), objective=LeastDamage(gap=0.0, limit_s=30))
    bound = share * cost.latency({})
    fits = [
        rows["0"][j, 0] + rows["2"][k, 0]
        for j, k in itertools.product(range(4), repeat=2)
        if cost.latency({"0": grid[j], "2": grid[k]}) <= bound
    ]
    assert (found.status is Status.FOUND) == bool(fits)
    if fits:
        assert found.damage == pytest.approx(min(fits)) and found.costs["latency"] <= bound
        same = allocate(curves, cost, sc.Budget(latency_s=bound), objective=LeastDamage(gap=0.0, limit_s=30))
        assert same.damage == pytest.approx(min(fits))


def test_what_does_not_run_takes_as_long_as_what_is_wider_and_nothing_wider_is_faster() -> None:
    program = sc.trace(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 5)).eval(), (torch.zeros(1, 2),))
    taken = {1: 3.0, 2: 2.0, 3: None, 4: 5.0}

    def timed(calls):
        return [taken[call.args[1].shape[1]] if call.args[1].shape[0] == 5 else 0.0 for call in calls]

    table = build_table(structure(program), {"0": (1, 2, 3, 4)}, timed)
    assert [table({"0": width}) for width in (1, 2, 3, 4)] == [3.0, 3.0, 5.0, 5.0]
    taken[4] = None
    assert build_table(structure(program), {"0": (1, 2, 3, 4)}, timed).left_out == ("linear_1",)


def test_a_fit_is_of_factor_and_overhead_and_says_how_far_it_is_off() -> None:
    table = LatencyTable((Table(("a",), ((1, 2, 4),), np.array([1.0, 2.0, 4.0])),))
    fitted = table.fitted([({}, 9.0), ({"a": 1}, 3.0)])
    assert (fitted.scale, fitted.overhead_s, fitted.error) == pytest.approx((2.0, 1.0, 0.0))
    off = table.fitted([({}, 9.0), ({"a": 2}, 6.0), ({"a": 1}, 3.0)])
    assert off.error == pytest.approx(max(abs(off(w) / s - 1) for w, s in [({}, 9), ({"a": 2}, 6), ({"a": 1}, 3)]))
    assert off.error > 0.01
    alone = table.fitted([({}, 5.0)])
    assert (alone.scale, alone.overhead_s) == (1.0, 1.0) and alone({"a": 1}) == 2.0
    assert table.fitted([({}, 2.0)]).scale == 0.5, "operators by themselves may take longer than together"
    upside_down = table.fitted([({}, 5.0), ({"a": 1}, 7.0)])
    assert (upside_down.scale, upside_down.overhead_s) == (1.0, 1.0), "a table that knows no widths would be useless"
    with pytest.raises(ArgumentError, match="timed models"):
        table.fitted([])
