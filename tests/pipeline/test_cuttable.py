"""Trial cuts: what cannot be cut is left alone, and takes nothing else with it."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.graph.groups import find_groups
from secateur.graph.modes import training_only
from secateur.graph.trace import trace
from secateur.pipeline.cuttable import cuttable_groups


class Shuffled(nn.Module):
    """Channel shuffle: whole groups can go, and channels within them."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = 4
        self.a = nn.Conv2d(1, 16, 1)
        self.b = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.c = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b(torch.relu(self.a(x))))
        n, c, h, w = x.shape
        x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.c(x)).mean((2, 3)))


class Particular(Shuffled):
    """What only a trial tells: the forward pass insists on four groups."""

    def forward(self, x: Tensor) -> Tensor:
        if str(self.groups) != "4":
            raise ValueError("four groups, no fewer")
        return super().forward(x)


def test_a_group_that_cannot_be_cut_is_named_and_its_neighbours_stay() -> None:
    torch.manual_seed(0)
    model = Particular()
    program = trace(model, (torch.randn(2, 1, 8, 8),))
    sound, left = cuttable_groups(model, program, find_groups(program))
    assert {g.name for g in sound} == {"a:channel", "b", "c"}
    assert [note.where for note in left] == ["a:channel_group"]
    assert "a:channel_group" not in {g.name for g in sound}


def test_groups_keep_their_names_over_rounds() -> None:
    """The plan of several rounds, composed, cuts the dense model to the shapes of the result."""
    torch.manual_seed(0)
    model = Shuffled().eval()
    x = torch.randn(60, 1, 8, 8)
    data = [(x, torch.randint(2, (60,)))]
    how = sc.Retraining(epochs=1, learning_rate=1e-4)
    result = sc.prune(
        model, (x[:2],), train=data, validation=data, budget=sc.Budget(macs=0.3), retrain=how, rounds=3,
        controls=("uniform-magnitude",), sparsities=(0.25, 0.5, 0.75, 0.9), folds=2,
    )  # fmt: skip
    assert "a:channel" in result.plan.keep
    again = sc.cut(model, result.plan, program=sc.trace(model, (x[:2],)))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in result.model.state_dict().items()
    }


def test_nested_groups_keep_two_units() -> None:
    program = trace(Shuffled(), (torch.randn(2, 1, 8, 8),))
    groups = find_groups(program)
    scores = {g.name: torch.rand(g.size) for g in groups}
    plan = sc.plan(groups, scores, sparsity=0.95)
    assert {name: len(kept) for name, kept in plan.keep.items()} == {
        "a:channel_group": 2, "a:channel": 4 * 2, "b": 2, "c": 1,
    }  # fmt: skip


class Auxiliary(Shuffled):
    """A second head that only training mode reads."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + self.side(torch.relu(self.a(x))).mean((2, 3)) if self.training else y


def test_what_only_training_reaches_is_told_before_anything_is_cut() -> None:
    torch.manual_seed(0)
    model, x = Auxiliary().eval(), torch.randn(20, 1, 8, 8)
    data = [(x, torch.randint(2, (20,)))]
    how = {"train": data, "validation": data, "budget": sc.Budget(macs=0.6), "folds": 2, "sparsities": (0.5,)}
    how["controls"] = ()
    result = sc.prune(model, (x[:2],), **how)
    (warning,) = (w for w in result.report_data.warnings if "in training mode only" in w)
    assert warning.startswith("side: ")
    with pytest.raises(RuntimeError, match="channels"):
        result.model.train()(x)
    training = sc.Retraining(epochs=1, learning_rate=1e-4)
    with pytest.raises(sc.SurgeryError, match=r"modules side are .*aux_logits=False.*ignore=\[\.\.\.\]"):
        sc.prune(model, (x[:2],), **how, retrain=training)
    # What the second head reads stays, so there is nothing that it could not follow.
    kept = sc.prune(model, (x[:2],), **how, retrain=training, ignore=["a"], rounds=1)
    assert not any("training mode" in w for w in kept.report_data.warnings)
    assert kept.model.train()(x).shape == (20, 2)


def test_a_head_that_evaluation_reads_too_is_nothing_special() -> None:
    torch.manual_seed(0)
    dropped = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    assert training_only(trace(dropped, (torch.randn(2, 3),))) == ()
    unused = nn.Sequential(nn.Linear(3, 4))
    unused.spare = nn.Linear(2, 2)
    unused.forward = lambda x: nn.Linear.forward(unused[0], x)
    assert training_only(trace(unused, (torch.randn(2, 3),))) == ()
