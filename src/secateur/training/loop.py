"""Retraining: a plain loop that resumes, and that never goes on from a loss that is not finite."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from secateur.data import Batch, Batches, to_device
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.trace import in_eval_mode
from secateur.measures.metrics import PerSample
from secateur.measures.outputs import logits
from secateur.training.checkpoint import Checkpoint, copy_state, load_checkpoint, put_state, save_checkpoint
from secateur.training.distill import distillation_loss

logger = logging.getLogger(__name__)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]
Report = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Retraining:
    """How to retrain in each round.

    Attributes:
        epochs: passes over the training data.
        learning_rate: peak of the default optimizer (AdamW, which needs the least tuning across
            convolutional, recurrent and transformer networks).
        optimizer: parameters -> optimizer, instead of the default.
        scheduler: (optimizer, steps in all) -> scheduler stepped after each batch; default: linear
            warm-up over the first tenth, then a half cosine down to zero.
        distill: weight of the distillation from the dense model, in [0, 1].
        temperature: of the distillation.
        max_grad_norm: gradients are clipped to it; None = not.
        epoch_function: `(model, epoch)` trains one whole epoch in place, instead of all of the above.
    """

    epochs: int = 1
    learning_rate: float = 1e-3
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    distill: float = 0.0
    temperature: float = 4.0
    max_grad_norm: float | None = 1.0
    epoch_function: Callable[[nn.Module, int], None] | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ArgumentError(f"Retraining(epochs={self.epochs}): at least one epoch is needed")
        if not 0 <= self.distill <= 1:
            raise ArgumentError(f"Retraining(distill={self.distill}) must lie in [0, 1]")
        if not (self.learning_rate > 0 and self.temperature > 0):
            raise ArgumentError("Retraining: learning_rate and temperature must be positive")


def retrain(
    model: nn.Module,
    train: Batches,
    loss: PerSample,
    *,
    retraining: Retraining,
    seed: int,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    progress: Report | None = None,
) -> nn.Module:
    """Train `model` in place and give it back in eval mode.

    Every epoch runs with torch's random state seeded by (seed, epoch) and put back afterwards, so that
    shuffling and dropout do not depend on what ran before: a training that is killed and resumed gives
    the same weights, bit for bit on CPU.

    Args:
        model: trained in place; frozen parameters stay as they are.
        train: batches; a loader that shuffles should draw from torch's global random state.
        loss: per sample; its mean is minimised.
        retraining: how.
        seed: of everything random.
        teacher: the dense model, for distillation.
        checkpoint: directory for a checkpoint after each epoch; None = none.
        progress: called with (step, steps in all, loss) after each batch.

    Raises:
        NumericalError: the loss is not finite even at a tenth of the learning rate.
    """
    scale = 1.0
    good = copy_state(model)
    while True:
        try:
            with torch.random.fork_rng(devices=[]), _evaluating(teacher):
                return _attempt(model, train, loss, retraining, seed, teacher, checkpoint, progress, scale)
        except _NotFiniteError as error:
            put_state(model, good)
            if scale < 1:
                raise NumericalError(
                    f"retraining diverged: {error} at a tenth of the learning rate too; lower learning_rate "
                    f"(now {retraining.learning_rate}) or check the training data"
                ) from error
            scale = 0.1
            logger.warning("retraining diverged (%s); starting again from the cut model at a tenth of the rate", error)


def _evaluating(teacher: nn.Module | None) -> contextlib.AbstractContextManager[nn.Module | None]:
    return contextlib.nullcontext() if teacher is None else in_eval_mode(teacher)


class _NotFiniteError(Exception):
    """The loss of a batch is NaN or infinite."""


def _attempt(
    model: nn.Module,
    train: Batches,
    loss: PerSample,
    retraining: Retraining,
    seed: int,
    teacher: nn.Module | None,
    checkpoint: Path | None,
    progress: Report | None,
    scale: float,
) -> nn.Module:
    steps = train.length() if retraining.epoch_function is None else 1
    optimizer, scheduler = _optimizers(model, retraining, steps * retraining.epochs, scale)
    start = 0
    initial = copy_state(model)
    saved = load_checkpoint(checkpoint, model) if checkpoint is not None else None
    if saved is not None and saved.scale == scale:
        optimizer.load_state_dict(saved.optimizer)
        scheduler.load_state_dict(saved.scheduler)
        start = saved.epochs
    elif saved is not None and scale == 1.0:
        raise _NotFiniteError("so it was before the run was interrupted")
    elif saved is not None:
        put_state(model, initial)
    for epoch in range(start, retraining.epochs):
        torch.manual_seed(_epoch_seed(seed, epoch))
        model.train()
        if retraining.epoch_function is not None:
            retraining.epoch_function(model, epoch)
        else:
            _epoch(model, train, loss, retraining, optimizer, scheduler, teacher, progress, epoch, steps)
        if checkpoint is not None:
            state = Checkpoint(epoch + 1, optimizer.state_dict(), scheduler.state_dict(), scale)
            save_checkpoint(checkpoint, model, state)
    return model.eval()


def _epoch(
    model: nn.Module,
    train: Batches,
    loss: PerSample,
    retraining: Retraining,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    teacher: nn.Module | None,
    progress: Report | None,
    epoch: int,
    steps: int,
) -> None:
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    for number, batch in enumerate(train):
        value = batch_loss(model, to_device(batch, device), loss, retraining, teacher)
        if not bool(value.isfinite()):
            raise _NotFiniteError(f"the loss is {value.item()} in epoch {epoch + 1}, batch {number + 1}")
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        if retraining.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, retraining.max_grad_norm)
        optimizer.step()
        scheduler.step()
        if progress is not None:
            progress(epoch * steps + number + 1, retraining.epochs * steps, float(value.detach()))
    optimizer.zero_grad()


def batch_loss(
    model: nn.Module, batch: Batch, loss: PerSample, retraining: Retraining, teacher: nn.Module | None
) -> Tensor:
    """Mean loss of a batch, mixed with distillation if there is a teacher."""
    outputs = model(*batch.args, **batch.kwargs)
    own = loss(outputs, batch.targets).mean()
    if teacher is None or retraining.distill == 0:
        return own
    with torch.no_grad():
        aim = logits(teacher(*batch.args, **batch.kwargs))
    taught = distillation_loss(logits(outputs), aim, temperature=retraining.temperature).mean()
    return (1 - retraining.distill) * own + retraining.distill * taught


def _optimizers(model: nn.Module, retraining: Retraining, steps: int, scale: float) -> tuple[Optimizer, LRScheduler]:
    trained = [p for p in model.parameters() if p.requires_grad]
    make = retraining.optimizer or (lambda p: torch.optim.AdamW(p, lr=retraining.learning_rate))
    optimizer = make(trained)
    for group in optimizer.param_groups:
        group["lr"] *= scale
    return optimizer, (retraining.scheduler or warmup_cosine)(optimizer, steps)


def warmup_cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Linear warm-up over the first tenth of the steps, then a half cosine down to zero."""
    warmup = max(1, steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / max(steps - warmup, 1), 1.0)))

    return LambdaLR(optimizer, factor)


def _epoch_seed(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"epoch:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
