"""Points measured in other processes, bit for bit those of this one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from networks import Recurrent
from secateur.errors import ArgumentError
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.scan import scan
from secateur.storage.curve_store import CurveStore


def setting():
    torch.manual_seed(0)
    model = Recurrent("LSTM", 2, True).double().eval()
    x = torch.randn(120, 6, 5).double()
    data = [(x[k : k + 40], model(x[k : k + 40]).detach().argmax(-1)) for k in range(0, 120, 40)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    return program, groups, {g.name: torch.arange(float(g.size)) for g in groups}, data


@pytest.mark.parametrize("racing", [None, Racing((0.2,), stage=30, bisect=True)])
def test_two_processes_give_what_one_gives(racing: Racing | None, tmp_path: Path) -> None:
    job = setting()
    one = scan(*job, sparsities=(0.3, 0.6), racing=racing)
    with CurveStore.open(tmp_path / "points") as store:
        two = scan(*job, sparsities=(0.3, 0.6), racing=racing, workers=2, store=store)
        again = scan(*job, sparsities=(0.3, 0.6), racing=racing, store=store)
    assert two.tally.measured == one.tally.measured > 0 == again.tally.measured
    for name, curve in one.items():
        for other in (two[name], again[name]):
            np.testing.assert_array_equal(curve.damage, other.damage)
            np.testing.assert_array_equal(curve.loss_damage, other.loss_damage)


def test_what_cannot_be_sent_is_named() -> None:
    program, groups, scores, data = setting()
    with pytest.raises(ArgumentError, match="the metric cannot be sent"):
        scan(
            program, groups, scores, data, workers=2, higher_is_better=True,
            metric=lambda outputs, targets: torch.zeros(len(targets)),
        )  # fmt: skip
    with pytest.raises(ArgumentError, match="workers=0"):
        scan(program, groups, scores, data, workers=0)
