"""Least squares from sums of products, its strength chosen on samples that the fit has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.gram import with_constant
from secateur.errors import NumericalError

RIDGES = (1e-6, 1e-2, 1e-1)
"""Candidates. On ResNet-20 held-out errors with 1e-4 and 1e-3 were within 2 % of these, and worse beyond 0.1."""

SHARES = (0.25, 0.5, 0.75, 1.0)
FOLDS = 4

FLOOR = 1e-6
"""What is left of the ridge for the constant: enough for a matrix that it makes singular."""

NEGLIGIBLE = 1e-12
"""An error below this share of the targets' own size is rounding."""


@dataclass(frozen=True, eq=False)
class Products:
    """Sums over rows of data; those of two parts add up.

    Attributes:
        gram: float64 (groups, columns, columns): inputs with inputs; the last column is a constant 1.
        cross: float64 (groups, outputs, columns): targets with inputs.
        energy: sum of squared targets.
        rows: of data.
    """

    gram: Tensor
    cross: Tensor
    energy: float
    rows: int

    def __add__(self, other: "Products") -> "Products":
        return Products(
            self.gram + other.gram, self.cross + other.cross, self.energy + other.energy, self.rows + other.rows
        )

    def __sub__(self, other: "Products") -> "Products":
        return Products(
            self.gram - other.gram, self.cross - other.cross, self.energy - other.energy, self.rows - other.rows
        )

    def error(self, weights: Tensor) -> float:
        """Summed squared error of `weights` (groups, outputs, columns)."""
        return self.energy + float(((weights @ self.gram - 2 * self.cross) * weights).sum())

    def less(self, constant: Tensor) -> "Products":
        """The same for targets less a `constant` (groups, outputs)."""
        sums, means = self.cross[:, :, -1], self.gram[:, -1:, :]
        energy = self.energy + float((self.rows * constant.square() - 2 * constant * sums).sum())
        return Products(self.gram, self.cross - constant.unsqueeze(2) * means, energy, self.rows)

    def without_constant(self) -> "Products":
        """The same without the column of ones."""
        return Products(self.gram[:, :-1, :-1], self.cross[:, :, :-1], self.energy, self.rows)

    def centred(self) -> "Products":
        """The same about the means, without the constant: any constant may be added to the outputs then."""
        means, sums = self.gram[:, -1:, :-1], self.cross[:, :, -1:]
        count = max(self.rows, 1)
        return Products(
            self.gram[:, :-1, :-1] - means.transpose(1, 2) @ means / count,
            self.cross[:, :, :-1] - sums @ means / count,
            self.energy - float(sums.square().sum()) / count,
            self.rows,
        )


def products(design: Tensor, targets: Tensor) -> Products:
    """Sums over samples and positions.

    Args:
        design: (samples, positions, groups, columns).
        targets: (samples, positions, groups, outputs).

    >>> x, y = torch.tensor([[[[1.0]], [[2.0]]]]), torch.tensor([[[[3.0]], [[5.0]]]])
    >>> sums = products(x, y)
    >>> sums.gram.tolist(), sums.cross.tolist(), sums.energy
    ([[[5.0, 3.0], [3.0, 2.0]]], [[[13.0, 8.0]]], 34.0)
    """
    x = with_constant(design)
    y = targets.flatten(0, 1).transpose(0, 1).to(x.dtype)
    gram = torch.bmm(x.transpose(1, 2), x).double().cpu()
    cross = torch.bmm(y.transpose(1, 2), x).double().cpu()
    return Products(gram, cross, float(y.double().square().sum()), x.shape[1])


def in_folds(design: Tensor, targets: Tensor, first: int, folds: int = FOLDS) -> list[Products]:
    """Sums for each fold: sample k of the data belongs to fold `k % folds`; the first one here is `first`."""
    starts = [(k - first) % folds for k in range(folds)]
    return [products(design[start::folds], targets[start::folds]) for start in starts]


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights, and what they and the old ones miss on samples that took no part in fitting them.

    Attributes:
        weights: float64 (groups, outputs, columns).
        before: held-out squared error of the old weights, as a share of the targets' own size.
        after: likewise, of the new ones.
        ridge: chosen; relative to the mean diagonal of the Gram matrix.
        share: chosen: of the way from the old weights to the fitted ones; 0 if the old ones are the best.
    """

    weights: Tensor
    before: float
    after: float
    ridge: float
    share: float


def solve(
    parts: Sequence[Products],
    old: Tensor,
    name: str,
    *,
    has_constant: bool = True,
    ridges: Sequence[float] = RIDGES,
    shares: Sequence[float] = SHARES,
) -> Solution:
    """Argmin ||y - Wx||² + r ||W - W_old||²; `r`, and how far to go, are chosen by cross-validation.

    Shrinking towards the old weights rather than towards zero keeps what the data does not speak of.

    Source: asymmetric least squares as in ThiNet (Luo et al. 2017, arXiv:1707.06342) and GPTAQ (Li et al. 2025,
    arXiv:2504.02692); that its strength needs choosing: CoreQ (2026, arXiv:2602.05902).

    Args:
        parts: sums of the folds.
        old: float64 (groups, outputs, columns): weights, and the constant last.
        name: of the weight, for errors.
        has_constant: the last column is a constant, which is not shrunk.
        ridges: candidates.
        shares: candidates, in (0, 1].

    Raises:
        NumericalError: the sums are not finite, or no candidate can be factored.
    """
    whole = sum(parts[1:], parts[0])
    if not bool(whole.gram.isfinite().all() and whole.cross.isfinite().all()):
        raise NumericalError(
            f"the inputs or outputs of {name!r} are not finite on the calibration data ({whole.rows} rows); "
            "nothing was changed: check the weights of the model and the data"
        )
    size = max(whole.energy, torch.finfo(torch.float64).tiny)
    before = sum(part.error(old) for part in parts)
    unchanged = Solution(old, before / size, before / size, 0.0, 0.0)
    if before <= NEGLIGIBLE * size:
        return unchanged
    best, found = before, (0.0, 0.0)
    is_factored = False
    residuals = [part.cross - old @ part.gram for part in parts]
    residual = sum(residuals[1:], residuals[0])
    for ridge in ridges:
        steps = [
            _step(whole - part, residual - own, ridge, has_constant=has_constant)
            for part, own in zip(parts, residuals, strict=True)
        ]
        known = [step for step in steps if step is not None]
        if len(known) < len(steps):
            continue
        is_factored = True
        # Along a straight line the squared error is a parabola.
        slope = sum(float((own * step).sum()) for own, step in zip(residuals, known, strict=True))
        bend = sum(float((step @ part.gram * step).sum()) for part, step in zip(parts, known, strict=True))
        for share in shares:
            error = before - 2 * share * slope + share * share * bend
            if error < best:
                best, found = error, (ridge, share)
    if not is_factored:
        raise NumericalError(
            f"the Gram matrix of {name!r} ({whole.gram.shape[1]} columns, {whole.rows} rows) cannot be factored even "
            f"with a ridge of {max(ridges):g} of its mean diagonal; give more calibration data, or pass larger ridges"
        )
    final = _step(whole, residual, found[0], has_constant=has_constant) if found[1] else None
    if final is None:
        return unchanged
    return Solution(old + found[1] * final, before / size, best / size, *found)


def shift(parts: Sequence[Products], old: Tensor) -> tuple[Tensor, float, float]:
    """What to add to the constants of `old`, and its held-out error before and after, as a share of the targets' size.

    >>> x, y = torch.tensor([[[[1.0]]], [[[2.0]]]]), torch.tensor([[[[3.0]]], [[[4.0]]]])
    >>> parts = [products(x[:1], y[:1]), products(x[1:], y[1:])]
    >>> moved, before, after = shift(parts, torch.tensor([[[1.0, 0.0]]], dtype=torch.float64))
    >>> moved.item(), round(before, 3), round(after, 3)
    (2.0, 0.32, 0.0)
    """
    whole = sum(parts[1:], parts[0])
    size = max(whole.energy, torch.finfo(torch.float64).tiny)

    def moved(sums: Products) -> Tensor:
        return (sums.cross - old @ sums.gram)[:, :, -1] / max(sums.rows, 1)

    def shifted(by: Tensor) -> Tensor:
        return torch.cat([old[:, :, :-1], (old[:, :, -1] + by).unsqueeze(2)], dim=2)

    before = sum(part.error(old) for part in parts) / size
    after = sum(part.error(shifted(moved(whole - part))) for part in parts) / size
    return moved(whole), before, after


def _step(sums: Products, residual: Tensor, ridge: float, *, has_constant: bool) -> Tensor | None:
    """From weights with this residual to the ridge solution; None where the matrix cannot be factored."""
    diagonal = sums.gram.diagonal(dim1=1, dim2=2)
    columns = diagonal[:, :-1] if has_constant else diagonal
    damping = ridge * columns.mean(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    damped = damping.expand_as(diagonal).clone()
    if has_constant:
        # A column of ones has a scale of its own.
        damped[:, -1] = ridge * FLOOR * max(sums.rows, 1)
    lower, failed = torch.linalg.cholesky_ex(sums.gram + torch.diag_embed(damped))
    if bool(failed.any()):
        return None
    return torch.cholesky_solve(residual.transpose(1, 2), lower).transpose(1, 2)
