"""Groups and fixed axes of small networks, written down by hand."""

import pytest
import torch
from torch import Tensor, nn

from networks import CASES, Case, built
from secateur.errors import ArgumentError, NumericalError, TraceError
from secateur.graph.copies import copy_of
from secateur.graph.groups import find_fixed, find_groups, structure
from secateur.graph.trace import trace
from secateur.surgery.plan import plan


def groups_of(name: str) -> dict[str, tuple[int, int, str, bool]]:
    case = next(c for c in CASES if c.name == name)
    found = find_groups(trace(built(case), (case.inputs(2),)))
    return {g.name: (g.size, g.rows, g.granularity, g.exact) for g in found}


def test_residual_stream_is_one_group_and_padding_is_fixed() -> None:
    assert groups_of("residual") == {
        "stem": (8, 1, "channel", True),
        "a1": (8, 1, "channel", True),
    }


def test_grouped_convolution_has_groups_and_channels_within() -> None:
    found = groups_of("grouped")
    assert found["c1:channel_group"] == (3, 1, "channel_group", True)
    assert found["c1:channel"] == (12, 3, "channel", True)
    assert found["grouped"] == (18, 3, "channel", True)
    assert found["side"] == (4, 1, "channel", True)


def test_a_stacked_lstm_is_one_group_of_equal_rows() -> None:
    assert groups_of("LSTM-2-bidirectional") == {"rnn": (32, 4, "hidden", True)}


def test_attention_has_heads_head_dimensions_and_a_renormalised_stream() -> None:
    found = groups_of("attention")
    assert found["query"] == (4, 1, "head", True)
    assert found["up"] == (40, 1, "neuron", True)
    assert [name for name, (_, _, _, exact) in found.items() if not exact] == ["table"]


def test_heads_and_a_stream_whose_shape_they_read_are_cut_together() -> None:
    # The stream is the second attention's heads (nothing lies between), and as wide as those of the first;
    # head dimensions: the stream's, those of the first attention's values, and of both its and the second's queries.
    found = groups_of("reshaped")
    assert sorted(found.values()) == [(6, 2, "head", True), (16, 4, "head_dim", True)]


def test_one_group_of_a_group_norm_is_no_axis() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 1))
    (group,) = find_groups(trace(net, (torch.zeros(2, 3, 4, 4),)))
    assert (group.size, group.minimum, group.exact) == (8, 1, False)


def test_a_region_without_autocast_is_part_of_the_program_and_rows_of_a_table_are_no_units() -> None:
    assert sorted(groups_of("region").values()) == [(5, 1, "neuron", True), (9, 1, "neuron", True)]
    case = next(c for c in CASES if c.name == "region")
    assert structure(trace(built(case), (case.inputs(2),))).coverage() == 1


def test_tied_layers_share_one_group() -> None:
    assert groups_of("tied") == {"scale": (10, 1, "neuron", True)}


def test_ignore_by_module_glob_and_predicate() -> None:
    case = next(c for c in CASES if c.name == "residual")
    program = trace(built(case), (case.inputs(2),))
    for ignore in (["a1"], ["a?.weight"], ["a1.weight"]):
        assert "a1" not in {g.name for g in find_groups(program, ignore)}
    assert find_groups(program, [lambda name: True]) == ()
    assert "ignored at the caller's wish" in {f.reason for f in find_fixed(program, ["a1"])}


def test_an_unknown_operator_fixes_what_it_touches_and_says_so() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.b(torch.relu(self.a(x))))
            return self.c(torch.linalg.matrix_exp(x @ x.T) @ x)

    found = structure(trace(Odd(), (torch.randn(3, 4),)))
    assert "a" in {g.name for g in found.groups}
    odd = structure(trace(nn.Sequential(nn.Linear(4, 6), Cumulative(), nn.Linear(6, 2)), (torch.randn(3, 4),)))
    assert odd.groups == ()
    assert any("cumsum" in f.reason for f in odd.fixed)


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


class Unheard(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, -1).values


def test_every_dimension_is_in_a_group_or_fixed_with_a_reason() -> None:
    for case in CASES:
        program = trace(built(case), (case.inputs(2),))
        found = structure(program)
        covered: dict[tuple[str, int], set[int]] = {}
        for group in found.groups:
            for s in group.slices:
                covered.setdefault((s.parameter, s.dim), set()).update(s.index.flatten().tolist())
        for f in found.fixed:
            assert f.reason, (case, f)
        for name, shape in program.shapes.items():
            for dim, size in enumerate(shape):
                fixed = sum(f.size for f in found.fixed if (f.parameter, f.dim) == (name, dim))
                free = len(covered.get((name, dim), set()))
                # A fixed factor of a product (the gates) is inside the positions of the group.
                assert free + fixed == size or free == size, (case, name, dim)


def test_an_operator_without_a_rule_is_named() -> None:
    found = structure(trace(nn.Sequential(nn.Linear(4, 6), Unheard(), nn.Linear(6, 2)), (torch.randn(3, 4),)))
    assert found.groups == ()
    assert any("no rule for the operator aten.cummax" in f.reason for f in found.fixed)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    trace(model, (torch.zeros(2, 3),))
    assert model.training and model[0].training and not model[1].training


def test_a_model_that_cannot_be_exported_is_recorded() -> None:
    class Branching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            return self[1](x + 1 if float(x.sum()) > 0 else x - 1)

    program = trace(Branching(nn.Linear(3, 5), nn.Linear(5, 2)), (torch.ones(2, 3),))
    assert program.recorded
    assert not trace(nn.Linear(3, 4), (torch.ones(2, 3),)).recorded


def test_example_inputs_that_do_not_fit() -> None:
    with pytest.raises(TraceError, match=r"does not run on the example inputs.*\(2, 5\)"):
        trace(nn.Linear(3, 4), (torch.zeros(2, 5),))
    with pytest.raises(TraceError, match="needed a tuple"):
        trace(nn.Linear(3, 4), torch.zeros(2, 3))  # type: ignore[arg-type]


def test_weights_that_are_not_finite() -> None:
    model = nn.Linear(3, 4)
    model.weight.data[1, 2] = float("nan")
    with pytest.raises(NumericalError, match="'weight' holds 1 values"):
        trace(model, (torch.zeros(2, 3),))


def test_widths_keep_the_multiple_and_the_minimum_asked_for() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    program = trace(net, (torch.zeros(1, 3),))
    found = find_groups(program, multiple_of={"*": 2, "0": 4}, minimum=3)
    assert [(g.name, g.multiple_of, g.minimum) for g in found] == [("0", 4, 3), ("2", 2, 3)]
    kept = plan(found, {g.name: torch.rand(g.size) for g in found}, sparsity=0.9).keep
    assert {name: len(units) for name, units in kept.items()} == {"0": 4, "2": 4}
    with pytest.raises(ArgumentError, match=r"'9' -> 2.*fits one of the groups"):
        find_groups(program, multiple_of={"9": 2})
    with pytest.raises(ArgumentError, match=r"minimum.*at least 1"):
        find_groups(program, minimum=0)


def test_names_of_groups_do_not_depend_on_what_is_ignored() -> None:
    case = next(c for c in CASES if c.name == "grouped")
    program = trace(built(case), (case.inputs(2),))
    names = {g.name for g in find_groups(program)}
    assert {g.name for g in find_groups(program, ["norm"])} < names


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_model_on_the_meta_device_has_the_same_groups(case: Case) -> None:
    model, args = built(case), (case.inputs(2),)
    expected = structure(trace(model, args))
    # `model.to("meta")` would untie what is tied.
    empty = {id(p): nn.Parameter(p.detach().to("meta")) for p in model.parameters()}
    empty |= {id(b): b.to("meta") for b in model.buffers()}
    found = structure(trace(copy_of(model, empty), tuple(tensor.to("meta") for tensor in args)))
    assert [(g.name, g.size, g.exact) for g in found.groups] == [(g.name, g.size, g.exact) for g in expected.groups]
    assert found.fixed == expected.fixed


def test_branches_on_values_are_for_the_capture_where_there_are_none() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            if not torch.compiler.is_exporting() and bool((x > 0).all()):
                x = -x
            return self.down(self.up(x))

    program = trace(Branching().to("meta"), (torch.zeros(2, 4, device="meta"),))
    assert [g.name for g in find_groups(program)] == ["up"]


def test_a_program_is_typed_once_and_ignoring_leaves_that_as_it_is() -> None:
    program = trace(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), (torch.zeros(2, 4),))
    whole = structure(program)
    assert structure(program, ["0"]).groups == ()
    assert structure(program) is whole
    assert [g.name for g in whole.groups] == ["0"]
