"""Certificates from models and test data: what is claimed, in which order, and how often."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

import secateur as sc
from secateur.pipeline.paired_values import own_order
from secateur.storage.data_uses import USES


class Lookup(nn.Module):
    """Scores by sample number: what each sample is given is known."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores[x[:, 0].long()]


SAMPLES = 900
CLASSES = torch.arange(SAMPLES) % 3


def model(wrong: int = 0, *, start: int = 0, sharp: float = 4.0) -> Lookup:
    """Right everywhere but on `wrong` samples from `start` on."""
    answers = CLASSES.clone()
    answers[start : start + wrong] = (answers[start : start + wrong] + 1) % 3
    return Lookup(sharp * nn.functional.one_hot(answers, 3).float())


def batches(size: int = 128, *, labels: bool = True, offset: int = 0):
    x = torch.stack([torch.arange(SAMPLES).float(), torch.full((SAMPLES,), float(offset))], 1)
    return list(zip(x.split(size), CLASSES.split(size), strict=True)) if labels else list(x.split(size))


def test_it_is_the_paired_certificate_of_both_models_accuracies() -> None:
    found = sc.certify(model(10), model(16), batches(), tolerance=0.03)
    before, after = np.ones(SAMPLES), np.ones(SAMPLES)
    before[:10], after[:16] = 0, 0
    assert found.parts == (sc.certify_paired(before, after, tolerance=0.03, bounds=(0, 1), metric="accuracy"),)
    assert found.certified and found.level == pytest.approx(0.05) and found.number is None
    assert "not known whether these test data were used" in str(found) and "exchangeable" in str(found)


def test_several_metrics_must_all_pass_each_at_the_full_level() -> None:
    dense, pruned = model(), model(4, sharp=3.0)
    both = {"accuracy": 0.02, "cross_entropy": 0.001}
    found = sc.certify(dense, pruned, batches(), metric=["accuracy", "cross_entropy"], tolerance=both, clip=2.0)
    alone = [sc.certify(dense, pruned, batches(), metric=m, tolerance=t, clip=2.0).parts[0] for m, t in both.items()]
    assert found.parts == tuple(alone)
    assert [p.certified for p in found.parts] == [True, False] and not found.certified
    assert "intersection-union" in str(found)


def test_a_metric_that_is_no_mean_is_tested_by_the_shares_of_its_samples() -> None:
    found = sc.certify(model(10), model(40), batches(), metric="f1", tolerance=0.1).parts[0]
    targets = CLASSES.numpy()
    before, after = (f1_score(targets, m.scores.argmax(1), average="macro") for m in (model(10), model(40)))
    assert (found.before, found.after) == (pytest.approx(before), pytest.approx(after))
    assert found.certified and 0 < found.drop_error < 0.02 and found.guarantee == "asymptotic"


def test_an_object_that_is_no_mean_is_tested_as_the_metric_of_that_name() -> None:
    named = sc.certify(model(10), model(40), batches(), metric="f1", tolerance=0.1).parts[0]
    found = sc.certify(model(10), model(40), batches(), metric=MulticlassF1Score(3), tolerance=0.1).parts[0]
    assert (found.before, found.after) == (pytest.approx(named.before), pytest.approx(named.after))
    assert found.guarantee == "asymptotic" and "no mean over samples" in str(found)
    # The spread over 200 resamples is known to 5 %.
    assert found.drop_error == pytest.approx(named.drop_error, rel=0.2)
    mean = sc.certify(model(10), model(40), batches(), metric=MulticlassAccuracy(3, average="micro"), tolerance=0.1)
    assert mean.parts[0].guarantee == "exact"


def test_shares_promise_nothing_that_they_cannot_keep() -> None:
    with pytest.raises(sc.ArgumentError, match="f1 is no mean over samples"):
        sc.certify(model(10), model(40), batches(), metric="f1", tolerance=0.1, clip=0.5)
    # Of two models without an error all shares are 0, and F1 is 1: neither binary values nor certainty.
    found = sc.certify(model(), model(), batches(), metric="f1", tolerance=0.1).parts[0]
    assert not found.certified and found.bound == float("inf") and found.guarantee == "asymptotic"


def test_the_worst_class_decides() -> None:
    dense, pruned = model(), model()
    with torch.no_grad():
        pruned.scores[torch.where(CLASSES == 2)[0][:12], 2] = -1.0
    whole = sc.certify(dense, pruned, batches(), tolerance=0.04)
    found = sc.certify(dense, pruned, batches(), tolerance=0.04, slices="targets")
    assert whole.certified and not found.certified
    assert [p.metric for p in found.parts] == ["accuracy", *(f"accuracy on slice {k}" for k in range(3))]
    assert [p.certified for p in found.parts] == [True, True, True, False]
    assert [p.metric for p in found.shown()] == ["accuracy", "accuracy on slice 2"]
    assert found.parts[3].lost == 12 and found.parts[3].samples == 300
    assert sc.certify(dense, pruned, batches(), tolerance=0.04, slices=CLASSES.numpy()).parts == found.parts
    assert sc.certify(dense, pruned, batches(), tolerance=0.04, slices="targets", slice_tolerance=0.1).certified


def test_agreement_needs_no_labels_and_bounds_the_drop() -> None:
    dense, pruned = model(20), model(9, start=100)
    found = sc.certify(dense, pruned, batches(labels=False), metric="agreement", tolerance=0.06).parts[0]
    assert found.lost is None and found.drop == pytest.approx(29 / SAMPLES)
    labelled = sc.certify(dense, pruned, batches(), tolerance=0.06).parts[0]
    assert labelled.bound < found.bound and labelled.drop <= found.drop
    with pytest.raises(sc.DataError, match='metric="agreement"'):
        sc.certify(dense, pruned, batches(labels=False), tolerance=0.06)


class Given(nn.Module):
    """Scores by sample number, of any shape."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores[x.long()]


@pytest.mark.parametrize(
    ("shape", "classes", "targets"),
    [
        ((3, 4, 5), 1, (4, 5)),  # images
        ((3, 4, 5), 1, None),
        ((4, 3), 2, (4,)),  # steps
        ((4, 3), 2, None),
        ((3, 4), 1, (4,)),
        ((3,), 1, ()),
    ],
)
def test_a_sample_agrees_only_where_no_class_changes(shape, classes, targets) -> None:
    before = torch.rand(40, *shape, generator=torch.Generator().manual_seed(0))
    after = before.movedim(classes, -1).clone()
    places = after.reshape(40, -1, 3)
    places[::2, 0] = places[::2, 0].roll(1, -1)
    after = places.reshape(after.shape).movedim(-1, classes)
    x = torch.arange(40)
    data = [x] if targets is None else [(x, torch.zeros(40, *targets, dtype=torch.long))]
    [part] = sc.certify(Given(before), Given(after), data, metric="agreement").parts
    assert part.drop == 0.5


def test_a_sample_agrees_only_where_no_label_of_several_changes() -> None:
    """The highest of five scores stays the highest; another one changes its sign."""
    before = torch.tensor([5.0, 1.0, -1.0, -1.0, 2.0]).repeat(40, 1)
    after = before.clone()
    after[::4, 1] = -0.5
    data = [(torch.arange(40), torch.zeros(40, 5))]
    [agreement, accuracy] = sc.certify(Given(before), Given(after), data, metric=["agreement", "accuracy"]).parts[::-1]
    assert agreement.drop == 0.25 and agreement.drop >= abs(accuracy.drop) > 0


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_probabilities_have_no_signs_that_could_agree(shape, labels: bool) -> None:
    before = torch.linspace(-2, 2, 40).reshape(40, *shape)
    after = torch.where(before.abs() < 0.2, -before, before)
    data = [(torch.arange(40), torch.zeros(40))] if labels else [torch.arange(40)]
    [part] = sc.certify(Given(before), Given(after), data, metric="agreement").parts
    assert part.drop == pytest.approx(float((before.abs() < 0.2).double().mean()))
    with pytest.raises(sc.MetricError, match="as probabilities are"):
        sc.certify(Given(before.sigmoid()), Given(after.sigmoid()), data, metric="agreement")


@pytest.mark.parametrize("missing", [[np.nan, *range(SAMPLES - 1)], [None, *["a"] * (SAMPLES - 1)]])
@pytest.mark.parametrize("name", ["slices", "documents"])
def test_missing_labels_are_named(name: str, missing: list) -> None:
    with pytest.raises(sc.DataError, match=f"{name} must be numbers, none of them NaN, or strings"):
        sc.certify(model(), model(3), batches(), tolerance=0.02, **{name: missing})


def test_what_is_no_model_is_named() -> None:
    for before, after in ((model(), "pruned"), (None, model())):
        with pytest.raises(sc.ArgumentError, match=r"two nn\.Modules"):
            sc.certify(before, after, batches(), tolerance=0.02)
    with pytest.raises(sc.ArgumentError, match=r"two nn\.Modules.*got 3"):
        sc.certify_sequence(model(), [3], batches(), tolerance=0.02)  # type: ignore[list-item]
    for one in (model(), nn.Sequential(model())):
        with pytest.raises(sc.ArgumentError, match="candidates is one model"):
            sc.certify_sequence(model(), one, batches(), tolerance=0.02)  # type: ignore[arg-type]


def test_a_sequence_needs_every_tolerance() -> None:
    with pytest.raises(sc.ArgumentError, match="a sequence needs a tolerance"):
        sc.certify_sequence(model(), [model()], batches(), tolerance={"accuracy": None})  # type: ignore[dict-item]


def test_scores_that_are_not_finite_are_never_better() -> None:
    broken = model()
    with torch.no_grad():
        broken.scores[5] = torch.nan
    loss = sc.certify(model(50), broken, batches(), metric="cross_entropy", tolerance=0.5).parts[0]
    assert not loss.certified and loss.drop == np.inf and loss.not_finite == 1
    changed = sc.certify(model(), broken, batches(labels=False), metric="agreement", tolerance=0.5).parts[0]
    assert changed.drop == pytest.approx(1 / SAMPLES)


def test_models_come_back_in_the_mode_they_were_in() -> None:
    dense, pruned = model().train(), model()
    pruned.eval()
    sc.certify(dense, pruned, batches(), tolerance=0.1)
    assert dense.training and not pruned.training


def test_a_second_use_of_the_test_data_is_refused(tmp_path: Path) -> None:
    first = sc.certify(model(), model(3), batches(), tolerance=0.02, run_dir=tmp_path)
    again = sc.certify(model(), model(3), batches(64), tolerance=0.02, run_dir=tmp_path)
    assert first.number == again.number == 1 and first.parts == again.parts
    for pruned, tolerance, data in (
        (model(4), 0.02, batches()),
        (model(3), 0.03, batches()),
        (model(4), 0.02, batches()[:3]),
    ):
        with pytest.raises(sc.StoreError, match=r"used before.*accuracy within 0\.02 of a Lookup.*fresh test data"):
            sc.certify(model(), pruned, data, tolerance=tolerance, run_dir=tmp_path)
    assert sc.certify(model(), model(4), batches(offset=1), tolerance=0.02, run_dir=tmp_path).number == 1


def probability() -> sc.Metric:
    """Bounded, and not 0 or 1."""
    return sc.Metric(
        "probability", lambda out, y: out.softmax(-1).gather(1, y[:, None])[:, 0], higher_is_better=True, bounds=(0, 1)
    )


def test_the_order_of_the_samples_is_no_second_draw(tmp_path: Path) -> None:
    """The same claim again spends nothing, so another order of the samples must not give another outcome."""
    x, y = (torch.cat(part) for part in zip(*batches(), strict=True))
    documents = np.arange(SAMPLES) // 3
    found = {True: set(), False: set()}
    for seed in range(6):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seed))
        data = list(zip(x[order].split(64 + seed), y[order].split(64 + seed), strict=True))
        for by_documents, outcomes in found.items():
            part = sc.certify(
                model(5), model(20), data, metric=probability(), tolerance=0.3,
                **({"documents": documents[order.numpy()]} if by_documents else {"run_dir": tmp_path}),
            ).parts[0]  # fmt: skip
            assert part.guarantee == "anytime"
            outcomes.add((round(part.bound, 12), round(part.p_value, 9), part.samples))
    assert all(len(outcomes) == 1 for outcomes in found.values())


def test_copies_do_not_stand_together() -> None:
    order = own_order(["a"] * 50 + ["b"] * 50)
    switches = np.count_nonzero(np.diff(order < 50))
    assert sorted(order) == list(range(100)) and 30 < switches < 70


def test_samples_that_occur_more_than_once_are_named() -> None:
    twice = sc.certify(model(), model(3), batches() + batches(100)[:1], tolerance=0.02)
    assert "100 of the 1000 test samples repeat another one" in str(twice)
    assert "repeat another" not in str(sc.certify(model(), model(3), batches(), tolerance=0.02))


@pytest.mark.parametrize(
    "mistake",
    [
        {"tolerance": -0.1},
        {"tolerance": 1.0},
        {"tolerance": "1"},
        {"tolerance": {"accuracy": 2.0}},
        {"slices": "targets", "slice_tolerance": 0},
        {"slices": [1, 2]},
        {"documents": [1, 2]},
        {"clip": -1.0},
        {"metric": "mse", "clip": 0.1, "tolerance": 0.2},
        {"metric": "agreement", "tolerance": 1.5},
        {"metric": "f1", "clip": 0.1},
    ],
)
def test_a_mistake_uses_no_test_data(mistake, tmp_path: Path) -> None:
    with pytest.raises((sc.ArgumentError, sc.DataError)):
        sc.certify(model(), model(3), batches(), run_dir=tmp_path, **{"tolerance": 0.02, **mistake})
    assert not (tmp_path / USES).exists()


def test_data_without_targets_are_not_used(tmp_path: Path) -> None:
    with pytest.raises(sc.DataError, match="hold no targets"):
        sc.certify(model(), model(3), batches(labels=False), run_dir=tmp_path, tolerance=0.02)
    assert sc.certify(model(), model(3), batches(), run_dir=tmp_path, tolerance=0.02).number == 1


def test_levels_that_are_spent_one_by_one_make_each_certificate_stricter(tmp_path: Path) -> None:
    found = [
        sc.certify(model(), model(k), batches(), tolerance=0.03, run_dir=tmp_path, spend="sequence") for k in (3, 5)
    ]
    assert [f.level for f in found] == pytest.approx([0.05 * 6 / np.pi**2, 0.05 * 6 / np.pi**2 / 4])
    assert found[1].parts[0].confidence == pytest.approx(1 - found[1].level)
    assert "This is use 2" in str(found[1]) and "use" not in str(found[0]).partition("Assumed")[0]


class Stream:
    """Candidates with more and more wrong answers; counts how many were made."""

    def __init__(self, *wrong: int) -> None:
        self.wrong, self.made = wrong, 0

    def __iter__(self) -> Iterator[nn.Module]:
        for count in self.wrong:
            self.made += 1
            yield model(count)


def test_a_sequence_ships_the_last_pass_and_makes_no_more_than_it_tests() -> None:
    stream = Stream(1, 5, 8, 40, 2, 3)
    found = sc.certify_sequence(model(), stream, batches(), tolerance=0.02)
    assert [s.certified for s in found.steps] == [True, True, True, False] and stream.made == 4
    assert found.shipped == 2 and torch.equal(found.model.scores, model(8).scores)
    assert "Candidate 3 is the last that passed (candidate 4 failed" in found.sentence()
    assert "order of the candidates was fixed" in str(found)
    # Each at the full level: the same as alone.
    assert found.steps[1].parts == sc.certify(model(), model(5), batches(), tolerance=0.02).parts


def test_a_sequence_that_fails_at_once_ships_nothing() -> None:
    found = sc.certify_sequence(model(), [model(100), model(0)], batches(), tolerance=0.02)
    assert found.model is None and found.shipped is None and len(found.steps) == 1
    assert found.sentence().startswith("Candidate 1 failed")


def test_a_sequence_is_one_use_that_cannot_change_its_course(tmp_path: Path) -> None:
    def run(*wrong: int) -> sc.SequenceCertification:
        return sc.certify_sequence(model(), Stream(*wrong), batches(), tolerance=0.02, run_dir=tmp_path)

    first = run(1, 5, 40)
    assert run(1, 5, 40).steps == first.steps
    assert all(step.number == 1 for step in first.steps)
    with pytest.raises(sc.StoreError, match="second choice on the same test data"):
        run(1, 6, 40)
    with pytest.raises(sc.StoreError, match="used before"):
        run(2, 5, 40)


def test_the_use_is_written_down_before_the_models_run(tmp_path: Path) -> None:
    class Broken(Lookup):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sc.certify(model(), Broken(model().scores.detach()), batches(), tolerance=0.02, run_dir=tmp_path)
    assert (tmp_path / USES).exists()
    with pytest.raises(sc.StoreError, match="used before"):
        sc.certify(model(), model(1), batches(), tolerance=0.02, run_dir=tmp_path)


def test_choosing_by_the_test_data_breaks_the_claim_and_a_sequence_does_not() -> None:
    """Ten ever worse candidates, each sample lost independently: how often is a bad one shipped?"""
    rng = np.random.default_rng(0)
    samples, tolerance, alpha, runs = 300, 0.05, 0.05, 600
    drops = np.linspace(0.01, 0.1, 10)
    verdicts: dict[tuple[int, int], bool] = {}

    def passes(lost: int, gained: int) -> bool:
        if (lost, gained) not in verdicts:
            from secateur.allocation.paired_score import exact_p_value

            verdicts[lost, gained] = exact_p_value(samples, lost, gained, tolerance, enough=alpha) <= alpha
        return verdicts[lost, gained]

    naive = sequence = 0
    for _ in range(runs):
        lost = [int(rng.binomial(samples, d)) for d in drops]
        within = [k for k, b in enumerate(lost) if b / samples <= tolerance]
        naive += bool(within) and drops[within[-1]] > tolerance
        first_failure = next((k for k, b in enumerate(lost) if not passes(b, 0)), len(lost))
        sequence += first_failure > 0 and drops[first_failure - 1] > tolerance
    assert sequence / runs <= alpha + 2 * np.sqrt(alpha * (1 - alpha) / runs) < naive / runs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": ["accuracy", "accuracy"]}, "each once"),
        ({"metric": ["accuracy", "cross_entropy"], "tolerance": 0.1}, "mapping"),
        ({"metric": "accuracy", "tolerance": {"loss": 0.1}}, "needed one for each"),
        ({"slices": "classes"}, "targets"),
        ({"slice_tolerance": 0.1}, "without slices"),
        ({"spend": 0.01}, "needs run_dir"),
        ({"spend": 0.2, "run_dir": "x"}, "spend=0.2"),
        ({"spend": "all", "run_dir": "x"}, "spend='all'"),
        ({"confidence": 1.0}, "confidence"),
        ({"documents": [0] * SAMPLES, "metric": "agreement"}, "by samples"),
    ],
)
def test_bad_arguments(arguments, message) -> None:
    with pytest.raises(sc.ArgumentError, match=message):
        sc.certify(model(), model(), batches(), **arguments)


def test_bad_slices_and_candidates() -> None:
    with pytest.raises(sc.DataError, match="one label for each of the 900"):
        sc.certify(model(), model(), batches(), slices=[1, 2])
    with pytest.raises(sc.ArgumentError, match="no candidate"):
        sc.certify_sequence(model(), [], batches(), tolerance=0.1)
