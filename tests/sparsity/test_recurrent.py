"""Recurrent weights are fitted to what the dense layer gives from its own states."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import secateur as sc
from secateur.capture.recurrent import Layer, Weights
from secateur.sparsity import sparsify as module
from secateur.sparsity.plan import SparsityPlan
from secateur.sparsity.seen_recurrent import Role, seen_layer

SAMPLES, STEPS, INPUTS, HIDDEN = 80, 5, 4, 6


class One(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **more: Any) -> None:
        super().__init__()
        self.rnn = kind(INPUTS, HIDDEN, batch_first=True, **more)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rnn(x)[0]
        return out


class Packed(One):
    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x), 0, -1).clamp(max=x.shape[1])
        return pad_packed_sequence(self.rnn(pack_padded_sequence(x, lengths, batch_first=True))[0], batch_first=True)[0]


def states(rnn: nn.RNN, x: Tensor, ih: Tensor, bias_ih: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By hand: for every sample and step, the state before, the product with the inputs, and that with the states."""
    w_ih, b_ih = ih.numpy(), bias_ih.numpy()
    w_hh, b_hh = rnn.weight_hh_l0.detach().numpy(), rnn.bias_hh_l0.detach().numpy()
    h, found = np.zeros((len(x), HIDDEN)), []
    for t in range(STEPS):
        a, b = x[:, t].numpy() @ w_ih.T + b_ih, h @ w_hh.T
        found.append((h, a, b))
        h = np.tanh(a + b + b_hh)
    return tuple(np.stack(part, 1) for part in zip(*found, strict=True))  # type: ignore[return-value]


def test_weights_get_the_least_squares_fit_to_the_dense_layers_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DAMPINGS", (1e-12,))
    monkeypatch.setattr(module, "SHARES", (1.0,))
    torch.manual_seed(0)
    model, x = One(nn.RNN).double(), torch.randn(SAMPLES, STEPS, INPUTS).double() + 0.5
    plan = SparsityPlan({"rnn.weight_ih_l0": 0.5, "rnn.weight_hh_l0": 0.5}, sc.Unstructured(), sc.OBC(damping=1e-12))
    found = sc.sparsify(model, plan, calibration=list(x.split(SAMPLES // 4)))
    dense, small = model.rnn, found.model.rnn
    fitted = np.array([k for k in range(SAMPLES) if k % 4 != 3])
    _, before_in, before_state = states(dense, x, dense.weight_ih_l0.detach(), dense.bias_ih_l0.detach())
    h, after_in, _ = states(dense, x, small.weight_ih_l0.detach(), small.bias_ih_l0.detach())
    wanted = (before_in + before_state - after_in)[fitted].reshape(-1, HIDDEN)
    inputs = h[fitted].reshape(-1, HIDDEN)
    for row in range(HIDDEN):
        keep = found.masks["rnn.weight_hh_l0"][row].numpy()
        design = np.c_[inputs[:, keep], np.ones(len(inputs))]
        expected = np.linalg.lstsq(design, wanted[:, row], rcond=None)[0]
        np.testing.assert_allclose(small.weight_hh_l0[row].detach().numpy()[keep], expected[:-1], atol=1e-6)
        shift = (small.bias_hh_l0 - dense.bias_hh_l0)[row].item()
        np.testing.assert_allclose(shift, expected[-1], atol=1e-6)


def test_a_grus_product_with_the_states_is_wanted_as_it_is() -> None:
    torch.manual_seed(0)
    rnn, x = nn.GRU(INPUTS, HIDDEN).double(), torch.randn(STEPS, SAMPLES, INPUTS).double()

    def layer(ih: Tensor) -> Layer:
        weights = Weights(ih, rnn.weight_hh_l0.detach(), rnn.bias_ih_l0.detach(), rnn.bias_hh_l0.detach())
        return Layer("gru", x, [SAMPLES] * STEPS, (torch.zeros(SAMPLES, HIDDEN).double(),), weights, False)

    ih = rnn.weight_ih_l0.detach()
    found = seen_layer([layer(ih / 2)], "hh", [layer(ih)])
    with torch.no_grad():
        before = torch.cat([x.new_zeros(1, SAMPLES, HIDDEN), rnn(x)[0][:-1]])
        expected = float((before @ rnn.weight_hh_l0.T).square().sum())
    assert found.fit.wanted is not None and found.held.wanted is not None
    assert found.fit.wanted.energy + found.held.wanted.energy == pytest.approx(expected)


@pytest.mark.parametrize("role", ["ih", "hh"])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru"])
def test_batches_of_sequences_are_only_parts_of_the_data(kind: Literal["rnn_tanh", "gru"], role: Role) -> None:
    torch.manual_seed(0)
    rnn = (nn.GRU if kind == "gru" else nn.RNN)(INPUTS, HIDDEN).double()
    x = torch.randn(STEPS, 10, INPUTS).double()
    parameters = [p.detach() for p in rnn.parameters()]

    def seen(parts: list[int], scale: float = 1.0) -> list[Layer]:
        weights = Weights(parameters[0] * scale, *parameters[1:])
        zero = torch.zeros(10, HIDDEN).double()
        return [Layer(kind, p, [p.shape[1]] * STEPS, (zero[: p.shape[1]],), weights, False) for p in x.split(parts, 1)]

    whole, parts = (seen_layer(seen(sizes, 0.5), role, seen(sizes)) for sizes in ([10], [3, 5, 2]))
    for a, b in ((whole.fit, parts.fit), (whole.held, parts.held)):
        assert a.gram.positions == b.gram.positions
        torch.testing.assert_close(a.gram.total, b.gram.total)
        assert a.wanted is not None and b.wanted is not None
        torch.testing.assert_close(a.wanted.cross, b.wanted.cross)
        assert a.wanted.energy == pytest.approx(b.wanted.energy)


@pytest.mark.parametrize("make", [One, Packed])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (nn.RNN, {}),
        (nn.GRU, {}),
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
        (nn.LSTM, {"proj_size": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_dense_targets_come_closer_to_the_dense_outputs(make: type[One], kind: type[nn.RNNBase], more: Any) -> None:
    errors = []
    for seed in range(4):
        torch.manual_seed(seed)
        model, mixing = make(kind, **more).eval(), torch.randn(INPUTS, INPUTS)
        for parameter in model.parameters():
            parameter.data *= 2
        x, fresh = (torch.randn(320, STEPS, INPUTS) @ mixing for _ in range(2))
        with torch.no_grad():
            wanted = model(fresh)
            for asymmetric in (True, False):
                wanted_sparsity = sc.Sparsity(0.6, method=sc.OBC())
                found = sc.sparsify(model, wanted_sparsity, calibration=[x], asymmetric=asymmetric)
                errors.append(float((found.model(fresh) - wanted).square().mean()))
    assert sum(errors[::2]) < sum(errors[1::2])
