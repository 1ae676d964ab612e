"""Repair without labels: least squares for consumers, population moments for batch norm.

Modules are repaired in the order in which they run. Each consumer whose inputs were cut gets the
weights that best give the outputs of the dense model from the inputs that the pruned model now has;
each batch norm gets the moments of what it now sees. A fit is kept only where it is better on held-out
samples.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.data import Batch, Batches, to_device
from secateur.errors import NumericalError
from secateur.graph.trace import Program, in_eval_mode
from secateur.graph.typing import operator_name
from secateur.progress import NoProgress, Progress
from secateur.surgery.plan import Plan
from secateur.surgery.tensors import kept_positions
from secateur.types import Group, Note

HELD_OUT_EVERY = 4
SEVERAL = "kept as it was: it is called several times, with other inputs each time"


@dataclass(frozen=True, eq=False)
class Repaired:
    """What was repaired.

    Attributes:
        refitted: modules whose weights were fitted anew.
        recalibrated: batch norms that got new moments.
        notes: modules that were left as they were, and why.
    """

    refitted: tuple[str, ...]
    recalibrated: tuple[str, ...]
    notes: tuple[Note, ...]


def repair(
    small: nn.Module,
    dense: nn.Module,
    plan: Plan,
    calibration: Batches,
    *,
    program: Program,
    groups: Sequence[Group],
    ridge: float = 1e-4,
    progress: Progress | None = None,
) -> Repaired:
    """Repair `small` in place.

    Source: asymmetric least squares with intercept, from dense targets and pruned inputs, as in ThiNet
    (Luo et al. 2017, arXiv:1707.06342) and GPTAQ (Li et al. 2025, arXiv:2504.02692); batch-norm
    recalibration as in EagleEye (Li et al. 2020, arXiv:2007.02491), with population moments.

    Args:
        small: the cut model; its tensors are changed.
        dense: the model that it was cut from.
        plan: the plan of the cut.
        calibration: inputs; labels are not read.
        program: of `dense`.
        groups: of `program`.
        ridge: added to the Gram matrix, relative to its mean diagonal.
        progress: shown while running.

    Raises:
        NumericalError: a Gram matrix cannot be factored even with a thousandfold ridge.
    """
    kept = kept_positions(groups, plan, program.shapes)
    calls = Counter(run_order(small, calibration))
    wanted = [name for name in calls if _is_repairable(small, name, kept, program)]
    notes = [Note(name, SEVERAL) for name in wanted if calls[name] > 1]
    steps = [name for name in wanted if calls[name] == 1]
    refitted: list[str] = []
    recalibrated: list[str] = []
    with (
        in_eval_mode(small),
        in_eval_mode(dense),
        (progress or NoProgress()).stage("repair", len(steps)) as advance,
    ):
        for name in steps:
            module = small.get_submodule(name)
            if isinstance(module, _BatchNorm):
                _recalibrate(small, name, calibration)
                recalibrated.append(name)
            else:
                note = _refit(small, dense, name, calibration, kept, program, ridge)
                if note is None:
                    refitted.append(name)
                else:
                    notes.append(note)
            advance(1, name)
    return Repaired(tuple(refitted), tuple(recalibrated), tuple(notes))


def run_order(model: nn.Module, data: Iterable[Batch]) -> list[str]:
    """Names of the modules without children, one for each call, in the order in which a sample meets them."""
    order: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        sample = next(iter(data)).take(torch.tensor([0]))
        with in_eval_mode(model), torch.no_grad():
            _run(model, sample)
    finally:
        for handle in handles:
            handle.remove()
    return order


class _Reached(Exception):
    """The module that was waited for has been called."""


def _inputs(model: nn.Module, name: str, data: Iterable[Batch]) -> Iterator[Tensor]:
    """What module `name` is given, batch by batch; the rest of the forward pass is not run."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["input"])
        raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for batch in data:
            try:
                with torch.no_grad():
                    _run(model, batch)
            except _Reached:
                yield seen.pop()
    finally:
        handle.remove()


def _run(model: nn.Module, batch: Batch) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    moved = to_device(batch, device)
    model(*moved.args, **moved.kwargs)


def _is_repairable(small: nn.Module, name: str, kept: Mapping[tuple[str, int], Tensor], program: Program) -> bool:
    module = small.get_submodule(name)
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None
    weight = program.aliases.get(f"{name}.weight")
    # Another module reads a tied weight too, and would be changed by the fit.
    is_cut = (weight, 1) in kept and list(program.aliases.values()).count(str(weight)) == 1
    if isinstance(module, nn.Linear):
        return is_cut
    is_plain = isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1
    return is_plain and is_cut and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _recalibrate(model: nn.Module, name: str, data: Batches) -> None:
    """Population mean and variance of each channel of what the batch norm sees."""
    module = model.get_submodule(name)
    assert isinstance(module, _BatchNorm)
    assert module.running_mean is not None
    assert module.running_var is not None
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x in _inputs(model, name, data):
        flat = x.movedim(1, 0).flatten(1).double()
        count += flat.shape[1]
        total = total + flat.sum(1)
        squares = squares + flat.square().sum(1)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    if not bool((mean.isfinite() & variance.isfinite()).all()):
        raise NumericalError(f"the inputs of {name!r} are not finite on the calibration data; nothing was recalibrated")
    module.running_mean.copy_(mean)
    module.running_var.copy_(variance)


@dataclass
class _Moments:
    """Sums over positions of products of inputs (with a constant 1 last) and targets."""

    gram: Tensor
    cross: Tensor
    target: Tensor
    count: int = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """`x` (inputs + 1, positions), `y` (outputs, positions)."""
        self.gram += (x @ x.T).double().cpu()
        self.cross += (y @ x.T).double().cpu()
        self.target += y.double().square().sum().cpu()
        self.count += x.shape[1]

    def error(self, weights: Tensor) -> float:
        """Summed squared error of `weights` (outputs, inputs + 1)."""
        fitted = ((weights @ self.gram) * weights).sum() - 2 * (weights * self.cross).sum()
        return float(self.target + fitted)


def _refit(
    small: nn.Module,
    dense: nn.Module,
    name: str,
    data: Batches,
    kept: Mapping[tuple[str, int], Tensor],
    program: Program,
    ridge: float,
) -> Note | None:
    """Fit the weights of one consumer; a note if the old ones were better on held-out samples."""
    module: Any = small.get_submodule(name)
    rows = kept.get((program.aliases[f"{name}.weight"], 0))
    fit, held = _moments(small, dense, name, data, rows)
    has_intercept = module.bias is not None or _feeds_batch_norm(program, f"{name}.weight")
    old = torch.cat([module.weight.detach().flatten(1), _bias(module).unsqueeze(1)], dim=1).double().cpu()
    new = _solve(fit, old, name, ridge, with_intercept=has_intercept)
    if module.bias is None and has_intercept:
        # Batch norm takes any constant off, so both are judged with the best constant.
        old = _best_intercept(held, old)
        judged = _best_intercept(held, new)
    else:
        judged = new
    if not held.error(judged) < held.error(old):
        return Note(name, "kept as it was: the fitted weights were no better on held-out calibration samples")
    with torch.no_grad():
        module.weight.copy_(new[:, :-1].reshape(module.weight.shape))
        if module.bias is not None:
            module.bias.copy_(new[:, -1])
    return None


def _no_moments(inputs: int, outputs: int) -> _Moments:
    shapes = ((inputs, inputs), (outputs, inputs), ())
    gram, cross, target = (torch.zeros(shape, dtype=torch.float64) for shape in shapes)
    return _Moments(gram, cross, target)


def _moments(
    small: nn.Module, dense: nn.Module, name: str, data: Batches, rows: Tensor | None
) -> tuple[_Moments, _Moments]:
    module: Any = small.get_submodule(name)
    teacher: Any = dense.get_submodule(name)
    fit, held = (_no_moments(module.weight[0].numel() + 1, len(module.weight)) for _ in range(2))
    for now, before in zip(_inputs(small, name, data), _inputs(dense, name, data), strict=True):
        with torch.no_grad():
            # Not by calling the module: the hook that catches its inputs is still there.
            y = teacher.forward(before)
        samples = torch.arange(len(now))
        for moments, chosen in (
            (fit, samples[samples % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]),
            (held, samples[samples % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]),
        ):
            if len(chosen):
                target = _columns_out(module, y[chosen])
                moments.add(_columns_in(module, now[chosen]), target if rows is None else target[rows])
    return fit, held


def _columns_in(module: Any, x: Tensor) -> Tensor:
    """Inputs of the equivalent matrix product, one column a position, with a constant 1 last."""
    if isinstance(module, nn.Linear):
        flat = x.reshape(-1, x.shape[-1]).T
    else:
        is_line = isinstance(module, nn.Conv1d)
        image = x.unsqueeze(2) if is_line else x
        pair = (lambda v: (1, v[0])) if is_line else (lambda v: v)
        padding = (0, module.padding[0]) if is_line else module.padding
        unfolded = functional.unfold(
            image, pair(module.kernel_size), pair(module.dilation), padding, pair(module.stride)
        )
        flat = unfolded.movedim(1, 0).flatten(1)
    return torch.cat([flat, torch.ones_like(flat[:1])])


def _columns_out(module: Any, y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[-1]).T if isinstance(module, nn.Linear) else y.movedim(1, 0).flatten(1)


def _bias(module: Any) -> Tensor:
    bias: Tensor = module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias.detach()
    return bias


def _feeds_batch_norm(program: Program, weight: str) -> bool:
    """Whether every reader of the layer with this weight is a batch norm, which removes any constant."""
    name = program.aliases[weight]
    for node in program.nodes:
        if node.op == "placeholder" and program.names.get(str(node.target)) == name:
            readers = [reader for layer in node.users for reader in layer.users]
            return bool(readers) and all(operator_name(r) == "aten.batch_norm" for r in readers)
    return False


def _solve(moments: _Moments, old: Tensor, name: str, ridge: float, *, with_intercept: bool) -> Tensor:
    """Argmin ||y - Wx||² + r ||W - W_old||²: shrunk towards the old weights, not towards zero."""
    size = len(moments.gram) if with_intercept else len(moments.gram) - 1
    gram, cross = moments.gram[:size, :size], moments.cross[:, :size]
    scale = float(gram.diagonal().mean())
    for factor in (1.0, 10.0, 100.0, 1000.0):
        damping = ridge * factor * scale * torch.eye(size, dtype=torch.float64)
        lower, failed = torch.linalg.cholesky_ex(gram + damping)
        if not int(failed) and scale > 0:
            found = torch.cholesky_solve((cross + old[:, :size] @ damping).T, lower).T
            return torch.cat([found, old[:, size:]], dim=1)
    raise NumericalError(
        f"the Gram matrix of {name!r} ({size} inputs, {moments.count} positions) cannot be factored even with "
        f"a ridge of {ridge * 1000:g} of its mean diagonal; give more calibration data, or pass repair=False"
    )


def _best_intercept(moments: _Moments, weights: Tensor) -> Tensor:
    means = moments.gram[-1, :-1] / moments.count
    constant = moments.cross[:, -1] / moments.count - weights[:, :-1] @ means
    return torch.cat([weights[:, :-1], constant.unsqueeze(1)], dim=1)
