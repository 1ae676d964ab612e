"""What a layer's output error is made of: second moments of its inputs, made invertible, and said how."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from secateur.capture.gram import Gram
from secateur.errors import NumericalError
from secateur.sparsity.seen import Sums

MOST = 1.0
"""Damping is not raised above this: more of the identity than of the moments would be left."""

LEAST = 1e-8
"""What a damping of 0 is raised to at first."""

DEAD = 1e-12
"""An input whose spread is less than this share of its own mean square does not vary."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """Second moments of the inputs of a layer; the error of a change D of its weight is tr(D H D').

    Attributes:
        moments: H: float64 (groups, columns, columns), not damped.
        dead: inputs that say nothing, because they are always zero (or constant, where constants do not matter):
            bool (groups, columns).
        positions: how many inputs were averaged.
        where: the weight, for errors.
    """

    moments: Tensor
    dead: Tensor
    positions: int
    where: str

    def to(self, device: torch.device) -> "Curvature":
        """The same on a device."""
        return replace(self, moments=self.moments.to(device), dead=self.dead.to(device))

    def damped(self, damping: float) -> "Damped":
        """Made positive definite by a multiple of the identity.

        Args:
            damping: relative to the mean of the diagonal over inputs that are not dead; raised tenfold, up to 1, as
                long as the matrix cannot be factored.

        Raises:
            NumericalError: the moments are not finite, or no damping helps.

        >>> moments, dead = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([[False, True]])
        >>> Curvature(moments, dead, 9, "fc").damped(0.5).matrix.tolist()
        [[[3.0, 0.0], [0.0, 2.0]]]
        """
        if not bool(self.moments.isfinite().all()):
            raise NumericalError(
                f"the inputs of {self.where!r} are not finite on the calibration data ({self.positions} positions); "
                "check the weights of the model and the data"
            )
        alive = ~self.dead
        diagonal = self.moments.diagonal(dim1=1, dim2=2)
        scale = (diagonal * alive).sum(1) / alive.sum(1).clamp(min=1)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        # A dead input is like one that goes with no other; its weights are zero, so its own scale does not matter.
        matrix = self.moments * (alive.unsqueeze(1) & alive.unsqueeze(2))
        matrix = matrix + torch.diag_embed(self.dead * scale.unsqueeze(1))
        eye = torch.diag_embed(alive * scale.unsqueeze(1))
        tried = [damping]
        while (raised := max(tried[-1] * 10, LEAST)) <= MOST * (1 + 1e-9):
            tried.append(raised)
        for now in tried:
            found = matrix + now * eye
            lower, failed = torch.linalg.cholesky_ex(found)
            if not bool(failed.any()):
                inverse = torch.cholesky_inverse(lower)
                if bool(inverse.isfinite().all()):
                    note = "" if now == damping else f"damping raised from {damping:g} to {now:g}: singular moments"
                    return Damped(found, inverse, now, note)
        raise NumericalError(
            f"the second moments of the inputs of {self.where!r} ({matrix.shape[1]} columns, {self.positions} "
            f"positions) cannot be inverted even with a damping of {tried[-1]:g} of their mean diagonal; give more "
            "calibration data, or a larger damping"
        )


@dataclass(frozen=True, eq=False)
class Damped:
    """A curvature that can be inverted.

    Attributes:
        matrix: float64 (groups, columns, columns).
        inverse: of it.
        damping: what was added, relative to the mean diagonal.
        note: that it had to be raised; empty if not.
    """

    matrix: Tensor
    inverse: Tensor
    damping: float
    note: str


@dataclass(frozen=True, eq=False)
class Task:
    """Make outputs of inputs, as nearly as a weight can.

    Attributes:
        curvature: of the inputs.
        cross: mean of wanted outputs times inputs: float64 (groups, rows, columns).
        energy: mean square of the wanted outputs, summed over them.
    """

    curvature: Curvature
    cross: Tensor
    energy: float

    def error(self, matrix: Tensor) -> float:
        """Mean squared error of a weight's outputs, as a share of the wanted outputs' mean square."""
        found = self.energy + float(((matrix @ self.curvature.moments - 2 * self.cross) * matrix).sum())
        return max(found, 0.0) / max(self.energy, TINY)

    def solution(self, matrix: Tensor, damping: float) -> Tensor:
        """The weight that is best, without zeros, if the damping holds it to `matrix`."""
        damped = self.curvature.damped(damping)
        residual = self.cross - matrix @ self.curvature.moments
        return matrix + residual @ damped.inverse


TINY = torch.finfo(torch.float64).tiny


def task_of(sums: Sums, dense: Tensor, where: str, *, centred: bool) -> Task:
    """The task that the sums describe.

    Args:
        sums: over the calibration data.
        dense: the weight: float64 (groups, rows, columns).
        where: its name, for errors.
        centred: about the means: a bias, or a batch norm to come, takes up any constant error.
    """
    curvature = curvature_of(sums.gram, where, centred=centred).to(dense.device)
    if sums.wanted is None:
        cross = dense @ curvature.moments
        return Task(curvature, cross, float((cross * dense).sum()))
    count = max(sums.gram.positions, 1)
    mean = (sums.wanted.cross / count).to(dense.device)
    cross, energy = mean[:, :, :-1], sums.wanted.energy / count
    if centred:
        cross = cross - mean[:, :, -1:] * sums.gram.mean()[:, -1:, :-1].to(dense.device)
        energy -= float(mean[:, :, -1].square().sum())
    return Task(curvature, cross, energy)


def curvature_of(gram: Gram, where: str, *, centred: bool) -> Curvature:
    """The curvature of inputs with this Gram matrix.

    Args:
        gram: sums of products, the last column a constant 1.
        where: the weight, for errors.
        centred: about the mean: a bias, or a batch norm to come, takes up any constant error.

    >>> from secateur.capture.gram import gram_of
    >>> gram = gram_of(torch.tensor([[[[2.0]], [[4.0]]]]))
    >>> curvature_of(gram, "fc", centred=False).moments.item(), curvature_of(gram, "fc", centred=True).moments.item()
    (10.0, 1.0)
    """
    mean = gram.mean()
    moments, centre = mean[:, :-1, :-1], mean[:, -1, :-1]
    squares = moments.diagonal(dim1=1, dim2=2)
    if centred:
        moments = moments - centre.unsqueeze(2) * centre.unsqueeze(1)
    dead = moments.diagonal(dim1=1, dim2=2) <= DEAD * squares
    return Curvature(moments, dead, gram.positions, where)
