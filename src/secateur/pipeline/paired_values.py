"""What two models give for the same samples."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.data import Batch, Batches, to_device
from secateur.errors import ArgumentError, DataError, MetricError
from secateur.graph.trace import in_eval_mode
from secateur.measures.metrics import Metric, per_sample
from secateur.measures.outputs import class_scores, logits
from secateur.storage.data_uses import sample_digests
from secateur.types import Floats

NO_TARGETS = 'the test data hold no targets: pass them, or certify metric="agreement", which needs none'


@dataclass(frozen=True, eq=False)
class Paired:
    """What both models give for each sample.

    Attributes:
        metrics: name -> (dense, pruned).
        changed: whether the prediction is another; empty unless agreement is asked for.
        classes: the sample's target; empty unless the slices are the classes.
        order: positions of the samples in an order that is theirs, however they were read.
        repeated: samples that are the same as an earlier one, targets and all.
    """

    metrics: Mapping[str, tuple[Floats, Floats]]
    changed: NDArray[np.bool_]
    classes: NDArray[Any]
    order: NDArray[np.int64]
    repeated: int

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.order)


def paired_values(
    before: nn.Module, after: nn.Module, data: Batches, metrics: Sequence[Metric], *, agreement: bool, classes: bool
) -> Paired:
    """Run both models on the same batches, in eval mode without gradients.

    Args:
        before: the dense model.
        after: the pruned model.
        data: batches; moved to each model's device.
        metrics: per-sample metrics, of different names.
        agreement: compare predictions too: the class with the highest score, or the sign of a score without classes.
            Which dimension holds the classes is read off the targets; without targets it is the second of four
            dimensions or more (images), and else the last.
        classes: keep the targets as the samples' classes.

    Raises:
        DataError: there are no targets, and they are needed.
        ArgumentError: the classes are wanted, and the targets are not one class a sample.
        MetricError: a metric gives values of another shape, or agreement is asked for of probabilities without classes.
    """
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {m.name: ([], []) for m in metrics}
    changed: list[Tensor] = []
    labels: list[Tensor] = []
    lowest: list[float] = []
    digests: list[str] = []
    # Batch by batch, both models: their samples are the same even if the source shuffles or augments.
    with in_eval_mode(before), in_eval_mode(after), torch.no_grad():
        for batch in data:
            digests += sample_digests(batch)
            outputs = [model(*moved.args, **moved.kwargs) for model, moved in _each(before, after, batch)]
            if batch.targets is None and (metrics or classes):
                raise DataError(NO_TARGETS)
            for m in metrics:
                for kept, output in zip(found[m.name], outputs, strict=True):
                    targets = _beside(batch.targets, output)
                    values = per_sample(
                        m.function, output, targets, batch.size, f"metric {m.name!r}", rows=m.aggregate is not None
                    )
                    kept.append(values.detach().double().cpu())
            if agreement:
                changed.append(_changed(outputs[0], outputs[1], batch))
                lowest.append(_lowest_sign(outputs[0], batch))
            if classes:
                labels.append(_class_of(batch.targets, batch.size))
    if lowest and 0 <= min(lowest) < math.inf:
        raise MetricError(
            f"agreement compares the signs of scores, and all of the dense model's are {min(lowest):g} or more, as "
            "probabilities are: let both models give scores that are negative below the threshold"
        )
    return Paired(
        {name: (torch.cat(old).numpy(), torch.cat(new).numpy()) for name, (old, new) in found.items()},
        torch.cat(changed).numpy() if changed else np.zeros(0, dtype=bool),
        torch.cat(labels).numpy() if labels else np.zeros(0),
        own_order(digests),
        len(digests) - len(set(digests)),
    )


def own_order(digests: Sequence[str]) -> NDArray[np.int64]:
    """Positions of samples in an order that depends on what they are, not on where they stand.

    As good as drawn at random: by a hash of what a sample is and of how many like it came before.

    >>> [["a", "b", "c", "a"][k] for k in own_order("abca")] == [["c", "a", "a", "b"][k] for k in own_order("caab")]
    True
    """
    seen: Counter[str] = Counter()
    keys = []
    for digest in digests:
        keys.append(hashlib.sha256(f"{digest} {seen[digest]}".encode()).hexdigest())
        seen[digest] += 1
    return np.argsort(np.array(keys)).astype(np.int64)


def _each(before: nn.Module, after: nn.Module, batch: Batch) -> list[tuple[nn.Module, Batch]]:
    models = (before, after)
    return [(m, to_device(batch, next((p.device for p in m.parameters()), torch.device("cpu")))) for m in models]


def _beside(targets: Any, outputs: Any) -> Any:
    """The targets on the device of the outputs."""
    device = next((leaf.device for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)), None)
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) and device else leaf, targets)


def _changed(before: Any, after: Any, batch: Batch) -> Tensor:
    """Samples with another prediction anywhere, or with scores that are not finite."""
    old, new = (_scores(outputs, batch.targets) for outputs in (before, after))
    changed = ~new.isfinite().reshape(batch.size, -1).all(1)
    if old.ndim > 1 and old.shape[-1] > 1:
        changed |= (old.argmax(-1) != new.argmax(-1)).reshape(batch.size, -1).any(1)
    if _has_signs(old, batch.targets):
        changed |= ((old > 0) != (new > 0)).reshape(batch.size, -1).any(1)
    return changed


def _scores(outputs: Any, targets: Any) -> Tensor:
    """Scores with the classes last."""
    if isinstance(targets, Tensor):
        return class_scores(outputs, targets).detach().cpu()
    scores = logits(outputs).detach().cpu()
    return scores.movedim(1, -1) if scores.ndim > 3 else scores


def _has_signs(scores: Tensor, targets: Any) -> bool:
    """Whether each score may be a decision of its own: as many as there are targets, or one class."""
    return scores.ndim == (targets.ndim if isinstance(targets, Tensor) else 1) or scores.shape[-1] == 1


def _lowest_sign(outputs: Any, batch: Batch) -> float:
    """The lowest score where signs alone decide; infinity elsewhere."""
    scores = _scores(outputs, batch.targets)
    only_signs = _has_signs(scores, batch.targets) and (scores.ndim == 1 or scores.shape[-1] == 1)
    return float(scores.min()) if only_signs else math.inf


def _class_of(targets: Any, size: int) -> Tensor:
    if not isinstance(targets, Tensor) or targets.shape != (size,):
        raise ArgumentError('slices="targets" needs one class a sample; pass one label a sample instead')
    return targets.detach().cpu()
