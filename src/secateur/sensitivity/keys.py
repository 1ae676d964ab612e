"""Under which names measured values are kept: hashes of everything that they depend on."""

import hashlib
from collections.abc import Sequence

import torch
from torch import fx, nn

from secateur.data import Batches
from secateur.describe import content_hash, describe, own_version, without_addresses
from secateur.graph.trace import Program, named_state
from secateur.measures.evaluate import evaluate
from secateur.measures.metrics import Metric, PerSample
from secateur.sensitivity.measure import PointStore
from secateur.sensitivity.probe import Probe
from secateur.sensitivity.values import OTHER, by_name
from secateur.types import Evaluation


def context_key(prober: Probe) -> str:
    """Hash of all but the units that a point depends on: weights, operators, data, metrics, loss, repair, versions."""
    metrics = (prober.metric, *prober.others)
    parts = _key(prober.model, prober.program, prober.data, metrics, prober.loss), describe(prober.after)
    digest = hashlib.sha256("|".join(parts).encode())
    for values in by_name(prober.baseline).values():
        digest.update(values.tobytes())
    return digest.hexdigest()


def known_baseline(
    program: Program,
    data: Batches,
    *,
    metric: Metric,
    loss: PerSample,
    others: Sequence[Metric],
    store: PointStore | None,
) -> Evaluation:
    """What the whole model gives: from the store, or by a run that is then kept there.

    Raises:
        NumericalError: metric or loss is not finite.
    """
    key = "" if store is None else _key(program.model, program, data, (metric, *others), loss)
    found = None if store is None else store.get(key)
    if found is not None:
        return Evaluation(found["metric"], found["loss"], {m.name: found[OTHER + m.name] for m in others})
    baseline = evaluate(program.model, data, metric=metric, loss=loss, others=others)
    if store is not None:
        store.put(key, by_name(baseline), "the whole model")
    return baseline


def fingerprint(model: nn.Module) -> str:
    """Hash of a model's architecture as printed, its weights and buffers, and torch's version."""
    printed = without_addresses(str(model))
    if isinstance(model, fx.GraphModule):
        # A copy of a graph loses the name that it was given, which stands in the first line.
        printed = printed.partition("\n")[2]
    return content_hash([torch.__version__, type(model).__qualname__, printed, *named_state(model).items()])


def _key(model: nn.Module, program: Program | None, data: Batches, metrics: Sequence[Metric], loss: PerSample) -> str:
    """Hash of what the values of the whole model depend on; its forward pass may change where nothing printed does."""
    operators = "" if program is None else without_addresses(str(program.graph))
    words = [f"{m.name}, {m.sign}: {describe(m.function)}" for m in metrics]
    # Not in the fingerprint: a run goes on, and a test stays the same test, in a later release.
    parts = [own_version(), fingerprint(model), operators, content_hash(data), *words, describe(loss)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()
