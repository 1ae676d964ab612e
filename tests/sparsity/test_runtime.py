"""What runtimes make of zeros: the same results, and times as they are."""

import pytest
import torch
from torch import nn

from secateur.errors import SurgeryError
from secateur.sparsity.runtime import CSRLinear, in_csr, semi_structured, sparse_speed


def sparse_net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 5, bias=False), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[torch.rand_like(layer.weight) < 0.8] = 0
    return model


@pytest.mark.parametrize("shape", [(12,), (4, 12), (2, 3, 12)])
def test_stored_by_rows_it_computes_the_same(shape: tuple[int, ...]) -> None:
    model = sparse_net()
    stored = in_csr(model)
    assert [type(m) is CSRLinear for m in stored] == [True, False, True, False]
    x = torch.randn(shape)
    assert torch.allclose(stored(x), model(x), atol=1e-6)


def test_without_kernels_two_of_four_is_an_error_that_says_so() -> None:
    with pytest.raises(SurgeryError, match="on cpu, which has no kernels for 2:4"):
        semi_structured(sparse_net())


def test_times_are_measured_for_all_three() -> None:
    model = sparse_net()
    found = sparse_speed(model, model, args=(torch.randn(2, 12),))
    assert min(found.dense.median_s, found.zeros.median_s, found.csr.median_s) > 0
    assert "CSR" in str(found)
    assert len(str(found).splitlines()) == 3
