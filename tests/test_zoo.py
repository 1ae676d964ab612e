"""The bundled networks: sizes from the paper, and the law of surgery."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.zoo.digits import digits_cnn, digits_lstm
from secateur.zoo.resnet import resnet20

NETWORKS = {
    "resnet20": (resnet20, (3, 32, 32)),
    "digits-cnn": (digits_cnn, (1, 8, 8)),
    "digits-lstm": (digits_lstm, (1, 8, 8)),
}


def test_resnet20_has_the_size_of_the_paper() -> None:
    cost = sc.measure(resnet20(), (torch.zeros(1, 3, 32, 32),), latency=False)
    convolutions = 3 * 16 * 9 + 6 * 16 * 16 * 9 + 16 * 32 * 9 + 5 * 32 * 32 * 9 + 32 * 64 * 9 + 5 * 64 * 64 * 9
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert cost.params == convolutions + norms + 64 * 10 + 10 == 269_722
    stage1 = 32 * 32 * (3 * 16 * 9 + 6 * 16 * 16 * 9)
    stage2 = 16 * 16 * (16 * 32 * 9 + 5 * 32 * 32 * 9)
    stage3 = 8 * 8 * (32 * 64 * 9 + 5 * 64 * 64 * 9)
    assert cost.macs == stage1 + stage2 + stage3 + 640 == 40_551_040


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_cut_equals_masked(name: str, sparsity: float) -> None:
    build: Callable[[], nn.Module]
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    program = sc.trace(model, (torch.randn(2, *shape).double(),))
    groups = sc.find_groups(program)
    plan = sc.plan(groups, {g.name: torch.rand(g.size) for g in groups}, sparsity=sparsity)
    x = torch.randn(3, *shape).double()
    expected = sc.mask(model, plan, program=program)(x).detach()
    small = sc.cut(model, plan, program=program)
    torch.testing.assert_close(small(x).detach(), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))
    assert (expected - model(x).detach()).abs().max() > 1e-3 * expected.abs().max()
