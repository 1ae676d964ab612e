"""Batch-norm recalibration for any model, in the same way for every tool that is compared."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def recalibrate(model: nn.Module, inputs: list[Tensor]) -> nn.Module:
    """Give each batch norm the population moments of what it sees, those before it repaired already; in place.

    In training mode batch norm normalises by the moments of the batch, so one batch of all inputs does it.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    values = [0] * len(norms)
    handles = [
        norm.register_forward_pre_hook(lambda _, args, k=k: values.__setitem__(k, args[0][:, 0].numel()))
        for k, norm in enumerate(norms)
    ]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(torch.cat(inputs))
    for norm, count, handle in zip(norms, values, handles, strict=True):
        norm.eval()
        norm.running_var.mul_((count - 1) / count)  # torch keeps the unbiased estimate
        handle.remove()
    return model
