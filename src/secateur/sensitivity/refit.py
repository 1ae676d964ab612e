"""Points whose readers make up for what is gone, in closed form: as cheap to measure as a mask."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.capture.calls import NONE
from secateur.criteria.maps import Lines, matrix_of, readers
from secateur.criteria.statistics import Consumer, Statistics
from secateur.errors import ArgumentError, NumericalError
from secateur.graph.trace import Program
from secateur.repairs.readers import is_own_bias, is_read_otherwise
from secateur.surgery.mask import masked_tensors
from secateur.surgery.plan import Plan
from secateur.types import Group

FLOOR = 1e-9
"""Of the ridge, for the constant: enough for a matrix that it makes singular."""


@dataclass(frozen=True, eq=False)
class AfterRefit:
    """Points are measured with the readers of their group refitted by least squares, from the inputs that are left.

    With W the weights of a reader, R the columns that go, K those that stay and G the second moments of its inputs
    (a constant 1 among K where there is a bias), the outputs come closest to what they were with
    W_K + W_R G_RK (G_KK + r I)⁻¹. G is that of the dense model: for a reader that comes after another one, whose errors
    it sees, `AfterRepair` is exact, and this near it. No model is made and no data are read, so a point
    costs what a mask costs, and it is replayed.

    Attributes:
        statistics: with Gram matrices: `sc.collect(..., needs=sc.GroupOBS().needs)`.
        ridge: r, relative to the mean diagonal of G_KK.
    """

    statistics: Statistics
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ArgumentError(f"ridge={self.ridge} must be positive: inputs may depend on each other")

    @property
    def name(self) -> str:
        """For people."""
        return "refitting what reads the units"

    def changed(self, groups: Iterable[Group]) -> set[str]:
        """The parameters that take other values where units of `groups` go, besides those that masking changes."""
        return {
            place.name
            for consumer, _ in self._readers(groups)
            for place in (consumer.place, consumer.bias)
            if place is not None
        }

    def tensors(self, program: Program, groups: Sequence[Group], plan: Plan) -> dict[str, Tensor]:
        """The parameters without the units that `plan` removes, by canonical name.

        Weights that the model reads in several ways (a table that decodes, too) are masked and else left as they are.

        Raises:
            ArgumentError: Gram matrices were not collected.
            NumericalError: they are not finite, or cannot be factored.
        """
        found = masked_tensors(program.model, groups, plan)
        touched = [group for group in groups if group.name in plan.keep]
        weights = self.statistics.weights
        uses = Counter(consumer.place for consumer in self.statistics.consumers)
        for consumer, gone in self._gone(touched, plan):
            if uses[consumer.place] > 1 or is_read_otherwise(program, consumer.place.name):
                continue
            bias = consumer.bias
            has_bias = bias is not None and is_own_bias(program, consumer.place.name, bias.name)
            fitted, constant = _fitted(consumer, self.statistics, gone, self.ridge, has_bias=has_bias)
            _write(found, weights, consumer.place.name, (consumer.place.start, consumer.place.stop), fitted)
            if bias is not None and has_bias:
                old = weights[bias.name][bias.start : bias.stop]
                _write(found, weights, bias.name, (bias.start, bias.stop), old + constant.to(old))
        return found

    def _readers(self, groups: Iterable[Group]) -> Iterator[tuple[Consumer, tuple[Group, Lines]]]:
        for group in groups:
            for lines in readers(group, self.statistics):
                yield lines.consumer, (group, lines)

    def _gone(self, groups: Iterable[Group], plan: Plan) -> list[tuple[Consumer, Tensor]]:
        """Each reader, and which of its columns go: bool (groups of the map, columns)."""
        found: dict[int, tuple[Consumer, Tensor]] = {}
        for consumer, (group, lines) in self._readers(groups):
            kept = torch.zeros(group.size + 1, dtype=torch.bool)
            kept[plan.keep[group.name]] = True
            # NONE is -1: the last entry.
            kept[NONE] = True
            gone = ~kept[lines.units]
            before = found.get(id(consumer))
            found[id(consumer)] = consumer, gone if before is None else gone | before[1]
        return [(consumer, gone) for consumer, gone in found.values() if bool(gone.any())]


def _fitted(
    consumer: Consumer, statistics: Statistics, gone: Tensor, ridge: float, *, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """The rows of a weight, with zeros for the columns that go; and what is added to its bias."""
    where = consumer.place.name
    if consumer.gram is None:
        raise ArgumentError(
            f"the Gram matrix of the inputs of {where!r} was not collected; pass needs=sc.GroupOBS().needs to collect "
            "(and, for a wide layer, most_columns)"
        )
    matrix, moments = matrix_of(consumer, statistics), consumer.gram.mean()
    constant = torch.zeros(matrix.shape[:2], dtype=torch.float64)
    new = matrix.clone()
    for k, absent in enumerate(gone):
        kept = (~absent).nonzero().flatten()
        inside = torch.cat([kept, torch.tensor([len(absent)])]) if has_bias else kept
        step = matrix[k][:, absent] @ _explained(
            moments[k], inside, absent.nonzero().flatten(), len(kept), ridge, where
        )
        new[k][:, absent] = 0
        new[k][:, kept] += step[:, : len(kept)]
        if has_bias:
            constant[k] = step[:, -1]
    shape = (consumer.place.stop - consumer.place.start, *statistics.weights[where].shape[1:])
    return consumer.form.weight(new, shape), constant.flatten()


def _explained(moments: Tensor, inside: Tensor, gone: Tensor, columns: int, ridge: float, where: str) -> Tensor:
    """Coefficients of the columns that go on those that stay: (gone, inside)."""
    own = moments[inside][:, inside]
    damped = torch.full((len(inside),), 0.0, dtype=torch.float64)
    mean = own.diagonal()[:columns].mean() if columns else own.new_ones(())
    damped[:columns] = ridge * mean
    damped[columns:] = FLOOR * ridge
    lower, failed = torch.linalg.cholesky_ex(own + torch.diag(damped.clamp(min=torch.finfo(torch.float64).tiny)))
    if bool(failed.any()) or not bool(moments.isfinite().all()):
        raise NumericalError(
            f"the inputs of {where!r} are not finite on the calibration data, or their Gram matrix cannot be factored "
            f"with a ridge of {ridge:g} of its mean diagonal; check the data, or pass a larger ridge"
        )
    return torch.cholesky_solve(moments[inside][:, gone], lower).T


def _write(
    found: dict[str, Tensor], weights: Mapping[str, Tensor], name: str, rows: tuple[int, int], values: Tensor
) -> None:
    """Put values into some rows of a parameter, of which `found` gets a copy of its own."""
    whole = found[name].clone() if name in found else weights[name].clone()
    part = whole[rows[0] : rows[1]]
    part.copy_(values.reshape(part.shape))
    found[name] = whole
