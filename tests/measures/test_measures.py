"""Costs against hand counts, metrics against definitions, evaluation against loops."""

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from networks import CASES, built
from secateur.data import as_batches
from secateur.errors import DataError, MetricError, NumericalError
from secateur.measures.cost import measure
from secateur.measures.evaluate import evaluate
from secateur.measures.latency import Latency, time_models, verdict
from secateur.measures.metrics import (
    accuracy,
    cross_entropy,
    paired,
    per_sample,
    resolve_loss,
    resolve_metric,
    top_k_accuracy,
)
from secateur.measures.outputs import logits


def test_macs_of_layers_counted_by_hand() -> None:
    def macs(model: nn.Module, *shape: int) -> int:
        return measure(model, (torch.zeros(*shape),), latency=False).macs

    assert macs(nn.Conv2d(3, 8, 3, padding=1), 2, 3, 10, 10) == 2 * 100 * 8 * 3 * 9
    assert macs(nn.Conv2d(6, 8, 3, groups=2, stride=2), 1, 6, 9, 9) == 16 * 8 * 3 * 9
    assert macs(nn.ConvTranspose2d(4, 2, 2, stride=2), 1, 4, 5, 5) == 25 * 4 * 2 * 4
    assert macs(nn.LSTM(5, 7, batch_first=True), 2, 3, 5) == 2 * 3 * 4 * 7 * (5 + 7)
    assert macs(nn.GRU(5, 7, batch_first=True), 2, 3, 5) == 2 * 3 * 3 * 7 * (5 + 7)
    # Attention: four projections, and twice steps x steps x width.
    assert macs(Self(), 2, 6, 8) == 2 * (4 * 6 * 64 + 2 * 36 * 8)


class Self(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def test_tied_parameters_count_once_and_measuring_changes_nothing() -> None:
    case = next(c for c in CASES if c.name == "tied")
    model = built(case).train()
    cost = measure(model, (case.inputs(2),))
    assert cost.params == 9 * 10 + 10 * 10 + 10 + 10
    assert cost.memory_bytes == 8 * cost.params
    assert cost.latency_s is not None and 0 < cost.latency_s < 1
    assert model.training


def test_macs_where_a_layer_is_handed_a_view_of_a_parameter() -> None:
    class Handing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Parameter(torch.randn(6, 3)), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.layer(self.table[:4])

    model = Handing()
    assert measure(model, (torch.zeros(4, 2),), latency=False).macs == 4 * 3 * 2
    assert model.table.requires_grad


def test_a_slower_model_is_found_slower_and_equal_ones_get_no_verdict() -> None:
    small, large = nn.Linear(16, 16), nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = large

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x.repeat(8, 32))

    fast, slow = time_models([small, Wide()], (torch.zeros(64, 16),), blocks=7)
    assert slow.median_s > 2 * fast.median_s
    assert verdict(slow, fast).endswith("faster") and verdict(fast, slow).endswith("slower")
    assert verdict(Latency(1.0, 0.9, 1.1, 5), Latency(1.0, 0.8, 1.2, 5)).startswith("no verdict")


def test_metrics_by_their_definitions() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    targets = torch.tensor([1, 2, 2])
    assert accuracy(scores, targets).tolist() == [1, 0, 1]
    expected = -scores.log_softmax(1)[torch.arange(3), targets]
    torch.testing.assert_close(cross_entropy(scores, targets), expected)
    assert top_k_accuracy(torch.eye(7), torch.tensor([0, 1, 2, 3, 4, 5, 6]), k=5).tolist() == [1.0] * 7
    steps = torch.tensor([[1, 2, -100], [0, -100, -100]])
    sequence = torch.nn.functional.one_hot(torch.tensor([[1, 0, 0], [0, 1, 1]]), 3).float()
    assert accuracy(sequence, steps).tolist() == [0.5, 1.0]


def test_outputs_of_common_shapes() -> None:
    scores = torch.zeros(2, 3)

    class Output:
        logits = scores

    for outputs in (scores, Output(), {"logits": scores}, (scores, None), [scores]):
        assert logits(outputs) is scores
    with pytest.raises(MetricError, match="returned a str"):
        logits("scores")


def test_directions_and_names() -> None:
    assert resolve_metric("accuracy").sign == 1 and resolve_metric("mse").sign == -1
    with pytest.raises(MetricError, match="higher is better; higher_is_better=False contradicts"):
        resolve_metric("accuracy", False)
    with pytest.raises(MetricError, match="no direction"):
        resolve_metric(lambda o, t: o)
    with pytest.raises(MetricError, match="'acuracy' is not known"):
        resolve_metric("acuracy")
    with pytest.raises(MetricError, match="loss 'accuracy'"):
        resolve_loss("accuracy")


def test_a_metric_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(MetricError, match=r"gave \(\) for a batch of 3 samples.*reduction='none'"):
        per_sample(lambda o, t: o.mean(), torch.zeros(3, 2), None, 3, "the loss")


def test_evaluation_is_per_sample_whatever_the_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    x, y = torch.randn(17, 4), torch.randint(3, (17,))
    metric, loss = resolve_metric("accuracy"), resolve_loss(nn.CrossEntropyLoss())
    whole = evaluate(model, as_batches([(x, y)], "d"), metric=metric, loss=loss)
    parts = evaluate(model, as_batches(list(zip(x.split(5), y.split(5), strict=True)), "d"), metric=metric, loss=loss)
    np.testing.assert_allclose(whole.loss, parts.loss, rtol=1e-6)
    model.eval()
    expected = torch.nn.functional.cross_entropy(model(x), y, reduction="none").detach().numpy()
    np.testing.assert_allclose(whole.loss, expected, rtol=1e-6)


def test_damage_has_the_metrics_direction_and_nan_is_never_better() -> None:
    before, after = np.array([1.0, 2.0, 3.0]), np.array([0.5, np.nan, 4.0])
    assert paired(before, after, 1).tolist() == [0.5, np.inf, -1.0]
    assert paired(before, after, -1).tolist() == [-0.5, np.inf, 1.0]


def test_values_that_are_not_finite_are_refused_at_the_baseline() -> None:
    model = nn.Linear(2, 3)
    model.weight.data[:] = float("inf")
    data = as_batches([(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))], "d")
    with pytest.raises(NumericalError, match="the loss is NaN or infinite on 4 of 4 samples"):
        evaluate(model, data, metric=resolve_metric("accuracy"), loss=resolve_loss("cross_entropy"))


def test_torchmetrics_that_are_means_have_one_value_a_sample() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    data = as_batches([(x[:12], y[:12]), (x[12:], y[12:])], "d")
    metric = resolve_metric(torchmetrics.classification.MulticlassAccuracy(3, average="micro"))
    found = evaluate(model, data, metric=metric, loss=resolve_loss("cross_entropy"))
    assert found.metric.tolist() == (model(x).argmax(1) == y).double().tolist()


def test_data_of_common_shapes_and_bad_data() -> None:
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    for raw in ((x, y), {"inputs": x, "labels": y}, [x, y]):
        batch = next(iter(as_batches([raw], "d")))
        assert batch.targets is y and batch.size == 3 and batch.take(torch.tensor([1])).size == 1
    own = as_batches(["anything"], "d", lambda raw: ((x,), {}, y))
    assert next(iter(own)).size == 3
    for wrong in ((x, y), {"x": x}, (x, y, None), ((x,), y, y)):
        with pytest.raises(DataError, match=r"batch_fn gave .* for a batch of d; needed \(args, kwargs, targets\)"):
            list(as_batches(["anything"], "d", lambda raw, wrong=wrong: wrong))
    with pytest.raises(DataError, match="validation is empty"):
        list(as_batches([], "validation"))
    with pytest.raises(DataError, match="one-shot iterator"):
        as_batches(iter([(x, y)]), "train")
    with pytest.raises(DataError, match=r"batch 1: .* holds NaN"):
        list(as_batches([(x, y), (x * float("nan"), y)], "train"))
    with pytest.raises(DataError, match="batch of type str"):
        list(as_batches(["word"], "train"))
    with pytest.raises(DataError, match="is a int"):
        as_batches(3, "train")


def test_a_loss_that_fails_is_named_with_what_it_was_given() -> None:
    model = nn.Linear(3, 2)
    batches = [(torch.zeros(4, 3), torch.zeros(4))]
    expected = r"the loss failed on outputs \(4, 2\) of float32 and targets \(4,\) of float32: RuntimeError"
    with pytest.raises(MetricError, match=expected) as caught:
        evaluate(
            model, as_batches(batches, "validation"), metric=resolve_metric("mse"), loss=resolve_loss("cross_entropy")
        )
    assert isinstance(caught.value.__cause__, RuntimeError)
