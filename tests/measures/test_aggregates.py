"""Metrics that are no means over samples, against their definitions, scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, roc_auc_score
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score

from secateur.data import as_batches
from secateur.errors import DataError, MetricError
from secateur.measures.aggregate import OfResamples, OfSums
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import Metric, resolve_loss, resolve_metric, resolve_metrics
from secateur.measures.objects import usable
from secateur.measures.outputs import class_scores


def rows_of(name: str, scores: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    found = resolve_metric(name).function(scores, targets)
    assert len(found) == len(targets)
    return found.double().numpy()


def drawn(samples: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, classes, generator=generator),
        torch.randint(classes - 1, (samples,), generator=generator),
    )


@pytest.mark.parametrize(("name", "score"), [("f1", f1_score), ("mean_iou", jaccard_score)])
def test_f1_and_iou_are_those_of_scikit_learn(name: str, score) -> None:
    scores, targets = drawn(60, 5)
    # A class that is neither there nor found does not count.
    scores[:, 4] = -torch.inf
    metric = resolve_metric(name)
    expected = score(targets, scores.argmax(1), average="macro", zero_division=0)
    assert metric.value(rows_of(name, scores, targets)) == pytest.approx(expected)
    binary, real = torch.randn(60, 1), torch.randint(2, (60,))
    assert metric.value(rows_of(name, binary, real)) == pytest.approx(score(real, binary[:, 0] > 0))
    labels = torch.randint(2, (60, 3))
    several = torch.randn(60, 3)
    assert metric.value(rows_of(name, several, labels)) == pytest.approx(score(labels, several > 0, average="macro"))


def test_segmentation_counts_pixels_and_not_ignored_ones() -> None:
    torch.manual_seed(0)
    scores, targets = torch.randn(6, 4, 5, 7), torch.randint(4, (6, 5, 7))
    targets[:, 0] = -100
    assert class_scores(scores, targets).shape == (6, 5, 7, 4)
    kept = targets >= 0
    expected = jaccard_score(targets[kept], scores.argmax(1)[kept], average="macro")
    assert resolve_metric("mean_iou").value(rows_of("mean_iou", scores, targets)) == pytest.approx(expected)
    share = (scores.argmax(1) == targets).double()[kept].reshape(6, -1).mean(1)
    torch.testing.assert_close(resolve_metric("accuracy").function(scores, targets), share)
    one = torch.randn(6, 1, 5, 7)
    mask = torch.randint(2, (6, 1, 5, 7))
    expected = jaccard_score(mask.flatten(), (one > 0).flatten())
    assert resolve_metric("mean_iou").value(rows_of("mean_iou", one, mask)) == pytest.approx(expected)
    sample = targets[:, 0, 0]
    pairs = resolve_metric("f1").aggregate.expand(torch.from_numpy(rows_of("f1", scores[:, :, 0, 0], sample)))
    assert not pairs.any()


def test_perplexity_is_that_of_all_tokens_together() -> None:
    torch.manual_seed(0)
    scores, targets = torch.randn(8, 6, 11).double(), torch.randint(11, (8, 6))
    targets[2, 1:] = -100
    loss = nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=-100)
    metric = resolve_metric("perplexity")
    assert metric.value(rows_of("perplexity", scores, targets)) == pytest.approx(float(loss.exp()))
    assert not metric.higher_is_better


@pytest.mark.parametrize("name", ["f1", "mean_iou", "perplexity"])
def test_shares_have_the_metric_as_their_mean_and_the_bootstraps_error(name: str) -> None:
    scores, targets = drawn(800, 4)
    worse = scores + torch.randn(800, 4, generator=torch.Generator().manual_seed(5))
    metric = resolve_metric(name)
    before, after = rows_of(name, scores, targets), rows_of(name, worse, targets)
    damage = metric.damage(before, after)
    expected = metric.sign * (metric.value(before) - metric.value(after))
    assert damage.mean() == pytest.approx(expected)
    rng = np.random.default_rng(1)
    samples = [rng.integers(0, 800, 800) for _ in range(400)]
    spread = np.std([metric.value(before[s]) - metric.value(after[s]) for s in samples])
    assert damage.std(ddof=1) / 800**0.5 == pytest.approx(spread, rel=0.12)


def test_the_mean_of_shares_is_exact_where_more_samples_give_another_value() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 1.0], [2.0, 5.0]])
    total = OfSums(lambda sums: sums[0] * sums[1])
    assert total.value(rows) == 48.0
    # By hand: the slope is (8, 6), so samples stand at 20, 30 and 46, which is -12, -2 and 14 from their mean.
    assert total.shares(rows).tolist() == [48.0 - 36, 48.0 - 6, 48.0 + 42]


def test_what_is_not_finite_afterwards_is_infinitely_bad() -> None:
    ratio = Metric("ratio", lambda o, t: o, higher_is_better=True, aggregate=OfSums(lambda sums: sums[0] / sums[1]))
    before, after = np.ones((3, 2)), np.ones((3, 2))
    after[1, 0] = np.inf
    assert ratio.damage(before, after).tolist() == [0.0, np.inf, 0.0]


def test_the_paired_bootstrap_has_the_error_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 300, 1))
    lost = OfResamples(lambda rows: rows.mean(), resamples=1000).lost(before, after)
    assert lost.mean() == pytest.approx((before - after).mean())
    assert lost.std(ddof=1) == pytest.approx((before - after).std(ddof=1), rel=0.1)
    assert np.corrcoef(lost, (before - after)[:, 0])[0, 1] > 0.8
    assert OfResamples(lambda rows: rows.mean()).lost(before[:1], after[:1]).tolist() == [
        pytest.approx((before - after)[0, 0])
    ]


def test_objects_that_are_no_means_are_resampled_and_others_are_not() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(50, 4)
    # A model without an error, of which much is a mean that is none elsewhere.
    for y in (torch.randint(3, (50,)), model(x).argmax(1)):
        data = as_batches([(x[:30], y[:30]), (x[30:], y[30:])], "d")
        mean = resolve_metric(MulticlassAccuracy(3, average="micro"))
        assert usable(model, data, mean) is mean
        f1 = usable(model, data, resolve_metric(MulticlassF1Score(3, average="macro")))
        found = evaluate(model, data, metric=f1, loss=resolve_loss("cross_entropy"))
        assert f1.value(found.metric) == pytest.approx(
            f1_score(y, model(x).argmax(1), average="macro", zero_division=0), abs=1e-6
        )
    data = as_batches([(x, model(x).argmax(1))], "d")
    worst = usable(model, data, resolve_metric(WorstClass(), True))
    assert worst.aggregate is not None and worst.value(np.array([[3.0, 1, 0, 0], [3, 1, 0, 1], [0, 1, 2, 2]])) == 0.0
    binary = nn.Linear(4, 1)
    labels = torch.randint(2, (50,)).unsqueeze(1)
    area = usable(binary, as_batches([(x, labels)], "d"), resolve_metric(BinaryAUROC()))
    rows = evaluate(binary, [next(iter(as_batches([(x, labels)], "d")))], metric=area, loss=lambda o, t: o[:, 0]).metric
    assert area.value(rows) == pytest.approx(roc_auc_score(labels[:, 0], binary(x).detach()[:, 0]), abs=1e-6)
    assert area.higher_is_better


def test_an_object_that_is_a_mean_with_wrong_targets_alone_is_none() -> None:
    y = torch.arange(30) % 3
    # Some of class 0 are taken for class 1, which their neighbours are not either: next to them nothing is right.
    x = nn.functional.one_hot(torch.where(torch.arange(30) % 6 == 0, 1, y), 3).float()
    f1 = usable(nn.Identity(), as_batches([(x, y)], "d"), resolve_metric(MulticlassF1Score(3, average="macro")))
    rows = evaluate(nn.Identity(), as_batches([(x, y)], "d"), metric=f1, loss=resolve_loss("cross_entropy")).metric
    assert f1.value(rows) == pytest.approx(f1_score(y, x.argmax(1), average="macro"), abs=1e-6)
    assert f1.aggregate is not None


class WorstClass:
    """The accuracy of the class that has the least."""

    def reset(self) -> None:
        self.right: dict[int, list[bool]] = {}

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        for found, target in zip(scores.argmax(1).tolist(), targets.tolist(), strict=True):
            self.right.setdefault(target, []).append(found == target)

    def compute(self) -> float:
        return min(sum(own) / len(own) for own in self.right.values())


class Largest:
    """The greatest score of all samples."""

    def reset(self) -> None:
        self.seen = [-torch.inf]

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        self.seen.append(float(scores.detach().max()))

    def compute(self) -> float:
        return max(self.seen)


def test_samples_that_cannot_be_drawn_anew_are_refused() -> None:
    ragged = as_batches([(torch.randn(5, length, 4), torch.zeros(5, length)) for length in (2, 3)], "d")
    with pytest.raises(MetricError, match="one shape; got 2"):
        usable(nn.Linear(4, 3), ragged, resolve_metric(Largest(), True))
    with pytest.raises(MetricError, match="targets that are a tensor; got NoneType"):
        usable(nn.Linear(4, 3), as_batches([torch.randn(5, 4)], "d"), resolve_metric(Largest(), True))


def test_several_metrics_have_names_and_directions_of_their_own() -> None:
    def share(outputs, targets):
        return outputs

    found = resolve_metrics(["top3", "loss", share, Metric("low", share, False)], True, "mse")
    assert [(m.name, m.sign) for m in found] == [("top3_accuracy", 1), ("loss", -1), (found[2].name, 1), ("low", -1)]
    with pytest.raises(MetricError, match="each with a name of its own"):
        resolve_metrics(["accuracy", "accuracy"], None, "mse")
    with pytest.raises(MetricError, match="at least one"):
        resolve_metrics([], None, "mse")
    with pytest.raises(MetricError, match="'top0' is not known"):
        resolve_metric("top0")
    with pytest.raises(MetricError, match="no direction"):
        resolve_metrics(["accuracy", share], None, "mse")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (MulticlassAccuracy(3, average=None), r"gives a result \(3,\) of float32; needed one number"),
        (MetricCollection([MulticlassAccuracy(3)]), r"gives a result of type dict; needed one number.* as a list"),
        (MulticlassAccuracy(5), r"failed on outputs \(8, 3\) of float32 and targets \(8,\) of int64: ValueError"),
    ],
)
def test_objects_that_give_no_number_are_named(metric: object, words: str) -> None:
    data = as_batches([(torch.randn(8, 3), torch.arange(8) % 3)], "d")
    with pytest.raises(MetricError, match=words):
        usable(nn.Identity(), data, resolve_metric(metric, higher_is_better=True))


def test_a_class_is_no_object() -> None:
    with pytest.raises(MetricError, match=r"MulticlassAccuracy is a class; pass an object of it"):
        resolve_metric(MulticlassAccuracy, higher_is_better=True)


def test_a_model_that_fails_while_an_object_is_tried_is_named() -> None:
    data = as_batches([(torch.randn(8, 3), torch.arange(8) % 3), (torch.randn(8, 2), torch.arange(8) % 3)], "d")
    with pytest.raises(DataError, match=r"Linear failed on batch 1, which gives it \(8, 2\) of float32"):
        usable(nn.Linear(3, 3), data, resolve_metric(MulticlassAccuracy(3)))
