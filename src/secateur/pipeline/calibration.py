"""A fixed, small part of a data source, held in memory."""

import torch

from secateur.data import Batch, Batches


def first_samples(data: Batches, most: int, *, seed: int) -> Batches:
    """The first `most` samples of one pass, remembered, so that every reader sees the same ones.

    The pass runs with torch's random state seeded, so that a loader that shuffles gives the same samples
    in every run.
    """
    batches: list[Batch] = []
    left = most
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in data:
            size = batch.size
            batches.append(batch if size <= left else batch.take(torch.arange(left)))
            left -= min(size, left)
            if left == 0:
                break
    return Batches(batches, data.name, batch_fn=lambda b: (b.args, b.kwargs, b.targets))
