"""The diagonal of the loss's Hessian by Hessian-vector products."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.capture.watch import watching
from secateur.data import Batch
from secateur.measures.metrics import PerSample, per_sample


def diagonal_of_sum(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    batch: Batch,
    loss: PerSample,
    vectors: int | None,
    seed: int,
) -> dict[str, Tensor]:
    """Second derivatives of the sum of a batch's losses by each element of the parameters: float64.

    Args:
        model: recurrent layers run step by step, attention unfused, so that all can be derived twice.
        parameters: they require gradients.
        batch: on their device.
        loss: per sample.
        vectors: how many; None: one for each element, which is exact.
        seed: of the random vectors. They are the same for all batches, so sums over batches are those of one batch.
    """
    # Fused attention has no second derivatives.
    with watching(model, lambda call: call.run()), sdpa_kernel(SDPBackend.MATH):
        total = per_sample(loss, model(*batch.args, **batch.kwargs), batch.targets, batch.size, "loss").sum()
    values = list(parameters.values())
    found = torch.autograd.grad(total, values, create_graph=True, allow_unused=True)
    gradients = [(p, g) for p, g in zip(values, found, strict=True) if g is not None and g.requires_grad]
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in parameters.items()}
    if not gradients:
        return sums
    probes = unit_vectors(values) if vectors is None else rademacher_vectors(values, vectors, seed)
    by_id = {id(p): k for k, p in enumerate(values)}
    for probe in probes:
        weights = [probe[by_id[id(p)]] for p, _ in gradients]
        products = torch.autograd.grad([g for _, g in gradients], values, weights, retain_graph=True, allow_unused=True)
        for diagonal, v, hv in zip(sums.values(), probe, products, strict=True):
            if hv is not None:
                diagonal.add_((v * hv).double(), alpha=1 if vectors is None else 1 / vectors)
    return sums


def rademacher_vectors(like: list[Tensor], count: int, seed: int) -> Iterator[list[Tensor]]:
    """Vectors of -1 and 1, shaped like the parameters."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield [(torch.randint(2, p.shape, generator=generator) * 2 - 1).to(p.device, p.dtype) for p in like]


def unit_vectors(like: list[Tensor]) -> Iterator[list[Tensor]]:
    """One vector for each element, which is 1 there and 0 elsewhere."""
    for k, p in enumerate(like):
        for element in range(p.numel()):
            vector = [torch.zeros_like(q) for q in like]
            vector[k].view(-1)[element] = 1
            yield vector
