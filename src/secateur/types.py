"""The values that pass between the floors: frozen, small, and without behaviour of their own."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

Fallback = Literal["error", "graph"]
"""What becomes of a cut that the user's own module cannot follow: an error, or a graph that can."""


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units of a group lie along one dimension of one parameter or buffer.

    Attributes:
        parameter: qualified name in the model's state.
        dim: the dimension that is cut.
        index: int64 (units, span): the positions along `dim` that each unit owns.
        first: the unit of the group that row 0 of `index` belongs to.
        masked: masking a unit zeroes these positions (as a rule, its consumers' input slices).
        trained: a parameter; False for a buffer.
        within: (another dimension, int64 (units, span) positions along it) to which each unit is limited:
            the rows of its head or of its group in a grouped convolution. None: all of them.
    """

    parameter: str
    dim: int
    index: Tensor
    first: int = 0
    masked: bool = False
    trained: bool = True
    within: tuple[int, Tensor] | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of a group whose units lie within those of another: head dimensions within heads.

    Attributes:
        outer: the other group; empty where the rows lie in none.
        first: row k of these lies within unit `first + k` of it.
        count: how many rows.
    """

    outer: str
    first: int
    count: int


@dataclass(frozen=True, eq=False)
class Group:
    """All parameter slices that must be cut with the same indices.

    Attributes:
        name: unique in the model; the parameter or module that produces the units.
        size: number of units, all rows together.
        slices: every place where the units lie.
        granularity: the kind of unit: "channel", "channel_group", "neuron", "head", "head_dim",
            "hidden", "expert".
        rows: units fall into this many equal rows (the layers of a stacked LSTM, the heads that head
            dimensions lie in), and each row keeps equally many. 1: no such constraint.
        nesting: the outer units that the rows lie in, in order of the rows; empty if in none.
        exact: removing a unit equals zeroing what its consumers see.
        note: why the group is not exact, or why the layers of a stack stay equally wide though they were to be
            apart; else empty.
        multiple_of: the kept width of a row must be a multiple of this.
        minimum: the least width of a row.
        fallback: "graph" if it was found as one that only a graph may be able to follow.
    """

    name: str
    size: int
    slices: tuple[Slice, ...]
    granularity: str = "channel"
    rows: int = 1
    nesting: tuple[Rows, ...] = ()
    exact: bool = True
    note: str = ""
    multiple_of: int = 1
    minimum: int = 1
    fallback: Fallback = "error"

    @property
    def width(self) -> int:
        """Units in one row."""
        return self.size // self.rows


@dataclass(frozen=True)
class Budget:
    """Upper bounds on the cost, all of which must hold; None bounds nothing.

    Attributes:
        macs: multiply-adds, a fraction in (0, 1] of those of the model given.
        params: parameters, a fraction.
        memory: bytes of parameters and buffers, a fraction.
        latency: time of a call on this device, a fraction; needs measured latencies.
        latency_s: time of a call in seconds; likewise.

    >>> Budget(macs=0.5).fractions()
    {'macs': 0.5}
    """

    macs: float | None = None
    params: float | None = None
    memory: float | None = None
    latency: float | None = None
    latency_s: float | None = None

    def fractions(self) -> dict[str, float]:
        """What is bounded by a fraction, by name."""
        every = {"macs": self.macs, "params": self.params, "memory": self.memory, "latency": self.latency}
        return {name: bound for name, bound in every.items() if bound is not None}


@runtime_checkable
class Separable(Protocol):
    """A cost that is a sum of parts, each of which depends on few groups."""

    def __call__(self, widths: Mapping[str, int], /) -> float:
        """The cost when each named group keeps so many units in a row, and every other group all."""

    def parts(self, levels: Mapping[str, Sequence[int]], /) -> Sequence[tuple[tuple[str, ...], Floats]]:
        """Tables over the levels of a few groups each, whose sum is nowhere below the cost.

        Args:
            levels: group -> the widths to choose from.
        """


@dataclass(frozen=True)
class Cost:
    """What a network costs for one call with the example inputs.

    Attributes:
        macs: multiply-adds (one multiply-add = 1).
        params: number of parameter elements; tied ones count once.
        memory_bytes: bytes of parameters and buffers.
        latency_s: median seconds of a call; None when it was not timed.
        latency_iqr_s: interquartile range of the timings; None when it was not timed.
    """

    macs: int
    params: int
    memory_bytes: int
    latency_s: float | None = None
    latency_iqr_s: float | None = None


@dataclass(frozen=True, eq=False)
class Curve:
    """Damage against sparsity for one group, paired with the baseline sample by sample.

    Attributes:
        group: name of the group.
        widths: units kept in each row, strictly decreasing; the first is the whole row.
        sparsities: fraction of units removed at each level, ascending; the first is 0.
        damage: float64 (levels, samples): metric lost on each sample; positive = worse. NaN where a level
            stopped before the sample was drawn. Of a metric that is no mean over samples: each sample's share of
            what is lost, whose mean over the samples of a level is that.
        loss_damage: float64 (levels, samples): loss gained on each sample; positive = worse.
    """

    group: str
    widths: tuple[int, ...]
    sparsities: tuple[float, ...]
    damage: Floats
    loss_damage: Floats

    def seen(self) -> NDArray[np.int64]:
        """Samples measured at each level, int64 (levels,)."""
        return np.asarray((~np.isnan(self.damage)).sum(axis=1))

    def mean(self) -> Floats:
        """Mean metric damage at each level over the samples measured there, float64 (levels,)."""
        return _means(self.damage)

    def mean_loss(self) -> Floats:
        """Mean loss damage at each level over the samples measured there, float64 (levels,)."""
        return _means(self.loss_damage)

    def standard_error(self) -> Floats:
        """Standard error of the mean metric damage at each level, float64 (levels,)."""
        seen = self.seen()
        with np.errstate(invalid="ignore", divide="ignore"):
            away = self.damage - _means(self.damage)[:, None]
            return np.asarray(np.sqrt(_sums(away**2) / (seen - 1) / seen))


def _sums(values: Floats) -> Floats:
    return np.asarray(np.where(np.isnan(values), 0.0, values).sum(axis=1))


def _means(values: Floats) -> Floats:
    """Over what is known of each row; NaN where nothing is."""
    with np.errstate(invalid="ignore"):
        return np.asarray(_sums(values) / (~np.isnan(values)).sum(axis=1))


Curves = Mapping[str, Curve]


class Status(enum.Enum):
    """How an allocation ended; the value is what the user reads."""

    FOUND = "within the budget"
    INFEASIBLE = "no choice meets the budget: raise it, or scan higher sparsities"


@dataclass(frozen=True)
class Allocation:
    """One chosen curve point for each group. It prints as a table.

    Attributes:
        levels: index into each group's curve.
        widths: units kept in a row of each group.
        damage: predicted: the sum of the single damages at the chosen points.
        costs: predicted, by name ("cost" for a function): multiply-adds, elements, bytes or seconds.
        status: whether the budget is met.
        bound: no choice of curve points within the budget has less predicted damage than this; 0 where nothing
            better is known.
    """

    levels: Mapping[str, int]
    widths: Mapping[str, int]
    damage: float
    costs: Mapping[str, float]
    status: Status = Status.FOUND
    bound: float = 0.0

    @property
    def cost(self) -> float:
        """The predicted cost; of several, that which the budget names first."""
        return next(iter(self.costs.values()))

    @property
    def gap(self) -> float:
        """Fraction of the predicted damage that a better allocation could spare at most."""
        return 0.0 if self.damage <= self.bound else 1 - self.bound / self.damage

    def __str__(self) -> str:
        """Whether the budget is met and at what damage, and every width.

        >>> print(Allocation({"up": 1}, {"up": 4}, 0.25, {"macs": 120.0}, bound=0.25))
        within the budget: macs 120; predicted damage 0.25
        up  4
        """
        costs = ", ".join(f"{name} {cost:g}" for name, cost in self.costs.items())
        above = f", of which a better choice could spare {self.gap:.2%} at most" if 0 < self.gap < 1 else ""
        first = f"{self.status.value}: {costs}; predicted damage {self.damage:.4g}{above}"
        longest = max(map(len, self.widths), default=0)
        return "\n".join([first, *(f"{name:<{longest}}  {width}" for name, width in self.widths.items())])


@dataclass(frozen=True)
class FixedAxis:
    """A parameter dimension (or part of one) that no group holds, and why.

    Attributes:
        parameter: qualified name.
        dim: the dimension.
        size: number of positions that are fixed.
        reason: what fixed it, in words.
    """

    parameter: str
    dim: int
    size: int
    reason: str


@dataclass(frozen=True)
class Rewrite:
    """An attribute of a module that was changed so that its forward pass fits the cut tensors."""

    module: str
    attribute: str
    before: int | tuple[int, ...]
    after: int | tuple[int, ...]


@dataclass(frozen=True)
class Note:
    """A thing worth telling the user: where, and what."""

    where: str
    text: str


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Per-sample results of a model on a data set.

    Attributes:
        metric: float64 (samples,), as the metric gives it (not turned by its direction); (samples, numbers) where
            it is no mean over samples.
        loss: float64 (samples,).
        others: likewise, of other metrics by name.
    """

    metric: Floats
    loss: Floats = field(default_factory=lambda: np.zeros(0))
    others: Mapping[str, Floats] = field(default_factory=dict)
