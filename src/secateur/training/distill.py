"""Distillation: the pruned network learns the dense one's outputs."""

from torch import Tensor
from torch.nn import functional


def distillation_loss(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence from teacher to student at a temperature, times its square.

    Source: Hinton et al. 2015, arXiv:1503.02531.

    Args:
        student: scores (samples, ..., classes).
        teacher: scores of the same shape.
        temperature: > 0; higher looks more at the small probabilities.

    Returns:
        (samples,), in nats, >= 0.

    >>> import torch
    >>> distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2)).item()
    0.0
    """
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    return temperature**2 * divergence.reshape(len(student), -1).mean(1)
