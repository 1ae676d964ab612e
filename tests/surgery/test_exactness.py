"""What is called exact, and what is not; what a forward pass does beside its result."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur as sc
from secateur.measures.macs import count_macs


class Kernel(nn.Module):
    """Queries times keys, each through a function."""

    def __init__(self, feature: str) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 4)
        self.feature = {
            "relu": functional.relu,
            "shifted": lambda x: functional.elu(x) + 1,
            "exp": torch.exp,
            "scaled": lambda x: 3 * x.square(),
            "normed": lambda x: x / x.norm(dim=-1, keepdim=True),
        }[feature]

    def forward(self, x: Tensor) -> Tensor:
        return self.feature(self.q(x)) @ self.feature(self.k(x)).transpose(1, 2) @ self.v(x)


def _group_of(model: nn.Module, x: Tensor, name: str) -> sc.Group:
    return next(g for g in sc.find_groups(sc.trace(model, (x,))) if g.name == name)


@pytest.mark.parametrize(
    ("feature", "exact"), [("relu", True), ("shifted", False), ("exp", False), ("scaled", True), ("normed", True)]
)
def test_a_sum_without_weights_is_exact_if_masked_units_are_zero(feature: str, exact: bool) -> None:
    group = _group_of(Kernel(feature).double(), torch.randn(2, 3, 5).double(), "q")
    assert group.exact is exact
    assert ("not zero where they are summed" in group.note) is not exact


class WrittenInto(nn.Module):
    """A tensor of zeros that is written through a view of it before it is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = torch.zeros_like(y)
        z[:, :, :].add_(torch.cos(y))
        return z.sum(-1, keepdim=True) * self.b(x)


def test_what_is_written_through_a_view_is_not_taken_for_zero() -> None:
    assert not _group_of(WrittenInto(), torch.randn(2, 3, 5), "a").exact


class Unused(nn.Module):
    """The last residual leads nowhere, and runs all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.skip, self.residual = nn.Linear(3, 6), nn.Linear(6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).tanh()
        x = x + self.residual(y)
        return self.skip(y)


def test_a_branch_that_leads_nowhere_is_cut_too() -> None:
    torch.manual_seed(0)
    model = Unused()
    program = sc.trace(model, (torch.randn(2, 3),))
    groups = sc.find_groups(program)
    plan = sc.plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.5)
    small = sc.cut(model, plan, program=program)
    assert small.residual.weight.shape == (3, 3)
    assert small(torch.randn(4, 3)).shape == (4, 2)


class Chosen(nn.Module):
    """How many rows there are depends on their values: exported, a shape without a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x[x[:, 0] > 0]).relu())


def test_a_shape_that_depends_on_values_is_recorded() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.0], [2.0, 1.0, 1.0]])
    program = sc.trace(Chosen(), (x,))
    assert program.recorded
    assert [(g.name, g.size) for g in sc.find_groups(program)] == [("a", 6)]


class Projected(nn.Module):
    """Torch knows the projection of an LSTM by hidden and cell state being of unequal width."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 8, proj_size=5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def test_a_projected_lstm_keeps_more_hidden_units_than_outputs() -> None:
    groups = sc.find_groups(sc.trace(Projected().double(), (torch.randn(4, 2, 3).double(),)))
    assert {(g.size, g.minimum) for g in groups} == {(8, 6), (5, 2)}


@pytest.mark.parametrize(
    ("model", "shapes", "macs"),
    [
        (nn.Bilinear(3, 4, 5), ((2, 3), (2, 4)), 2 * 3 * 4 * 5),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), ((2, 3),), 2 * 3 * 4 + 3 * 4 + 4),
    ],
    ids=["bilinear", "spectral norm"],
)
def test_contractions_that_torch_does_not_count_are_counted(
    model: nn.Module, shapes: tuple[tuple[int, ...], ...], macs: int
) -> None:
    assert count_macs(model.eval(), tuple(torch.zeros(shape) for shape in shapes)) == macs


def test_a_model_that_keeps_results_of_a_call_can_be_cut() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        hidden = nn.utils.weight_norm(nn.Linear(3, 6))
    model = nn.Sequential(hidden, nn.Tanh(), nn.Linear(6, 2))
    model(torch.ones(1, 3))
    assert not hidden.weight.is_leaf
    program = sc.trace(model, (torch.randn(2, 3),))
    groups = sc.find_groups(program)
    plan = sc.plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.5)
    assert sc.cut(model, plan, program=program)(torch.randn(4, 3)).shape == (4, 2)


class Asserting(nn.Module):
    """Looks at sizes before it goes on."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.width = kind, 6
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.a(x).tanh(), self.b(x).tanh()
        if self.kind == "attribute" and y.shape[-1] != self.width:
            raise AssertionError("y has another width")
        if self.kind == "shape" and y.shape != z.shape:
            raise AssertionError("y and z differ")
        if self.kind == "number" and y.size(-1) == 6:
            y = 2 * y
        return self.c(torch.cat([y, z], dim=-1))


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("nothing", [("a", 6), ("b", 6)]),
        ("attribute", [("a", 6), ("b", 6)]),
        ("shape", [("a", 12)]),
        ("number", [("b", 6)]),
    ],
)
def test_sizes_that_are_compared_stay_equal(kind: str, groups: list[tuple[str, int]]) -> None:
    torch.manual_seed(0)
    model = Asserting(kind).double()
    program = sc.trace(model, (torch.randn(2, 3).double(),))
    found = sc.find_groups(program)
    assert [(g.name, g.size) for g in found] == groups
    plan = sc.plan(found, {g.name: torch.rand(g.size) for g in found}, sparsity={found[0].name: 0.5})
    small = sc.cut(model, plan, program=program)
    x = torch.randn(5, 3).double()
    torch.testing.assert_close(small(x), sc.mask(model, plan, program=program)(x))
    assert small.width == (3 if kind == "attribute" else 6)


class Padded(nn.Module):
    """Queries and keys that are padded in time before they meet."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.q, self.k, self.v, self.value = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 4), value

    def forward(self, x: Tensor) -> Tensor:
        q, k = (functional.pad(f(x), (0, 0, 1, 1), value=self.value) for f in (self.q, self.k))
        return q.flip(1) @ k.movedim(1, 2) @ functional.pad(self.v(x), (0, 0, 1, 1))


@pytest.mark.parametrize(("value", "exact"), [(0.0, True), (1.0, False)])
def test_padding_with_another_value_than_zero_is_summed(value: float, exact: bool) -> None:
    assert _group_of(Padded(value).double(), torch.randn(2, 3, 5).double(), "q").exact is exact


class Plain(nn.Module):
    """Two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x).relu()).relu().sum((2, 3)))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_number_type_and_memory_layout_stay(kind: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = Plain().to(kind).to(memory_format=layout)
    program = sc.trace(model, (torch.randn(2, 3, 8, 8, dtype=kind),))
    groups = sc.find_groups(program)
    plan = sc.plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=0.5)
    small = sc.cut(model, plan, program=program)
    assert {p.dtype for p in small.parameters()} == {kind}
    assert small.b.weight.shape == (3, 4, 3, 3)
    assert small.b.weight.is_contiguous(memory_format=layout)
    x = torch.randn(2, 3, 8, 8, dtype=kind).double()
    got, expected = small.double()(x), sc.mask(model, plan, program=program).double()(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


class _SummedGate(nn.Module):
    """A sum of units that are never zero, times a number that their own sum makes."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.gate, self.head = nn.Linear(5, 8), nn.Linear(8, 1, bias=False), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        units = torch.sigmoid(self.units(x))
        return self.head((units * self.gate(units)).sum(-1, keepdim=True))


def test_a_gate_made_of_the_units_does_not_make_them_zero() -> None:
    (group,) = sc.find_groups(sc.trace(_SummedGate(), (torch.zeros(2, 5),)))
    assert not group.exact
