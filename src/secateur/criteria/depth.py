"""How much a residual branch turns the stream that it is added to."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur.capture.watch import Places, headwise
from secateur.criteria.statistics import WEIGHTS, Statistics
from secateur.data import BatchFn, as_batches, to_device
from secateur.errors import ArgumentError, NumericalError, PlanError
from secateur.graph.trace import in_eval_mode, kept_buffers
from secateur.types import Group

ADDS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}


@dataclass(frozen=True, eq=False)
class BlockCosine:
    """One less the cosine between the stream before a residual branch is added and after. Make it by `BlockCosine.of`.

    Taken for each sample over all of its values, and averaged: low = the branch leaves the stream as it is.

    Source: Men et al. 2024, arXiv:2403.03853 (ShortGPT, token by token).

    Attributes:
        turned: name of a branch's group -> 1 - mean cosine.
    """

    turned: Mapping[str, float] = field(repr=False)

    @classmethod
    def of(
        cls, model: nn.Module, groups: Iterable[Group], calibration: Any, *, batch_fn: BatchFn | None = None
    ) -> "BlockCosine":
        """One forward pass over the data, without labels.

        Args:
            model: left as it is; runs in eval mode.
            groups: from `find_groups(program, branches=True)`; those that are no branches are left out.
            calibration: any source of batches.
            batch_fn: takes apart batches of an unusual shape.

        Raises:
            PlanError: a branch was not seen to be added to a stream.
            NumericalError: a cosine is not finite.
        """
        branches = [group for group in groups if group.granularity == "branch"]
        owner = {s.parameter: group.name for group in branches for s in group.slices}
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        sums = {group.name: [0.0, 0] for group in branches}
        with torch.no_grad(), in_eval_mode(model), kept_buffers(model), headwise(model):
            for batch in as_batches(calibration, "calibration", batch_fn):
                on_device = to_device(batch, device)
                with _Sums(Places(model), owner, batch.size) as seen:
                    model(*on_device.args, **on_device.kwargs)
                for name, cosines in seen.found.items():
                    sums[name][0] += float(cosines.sum())
                    sums[name][1] += len(cosines)
        missed = [name for name, (_, count) in sums.items() if not count]
        if missed:
            raise PlanError(
                f"the branch {missed[0]!r} was not seen to be added to a stream when the model ran on the calibration "
                "data; score it by another criterion (Taylor scores every group)"
            )
        turned = {name: 1 - total / count for name, (total, count) in sums.items()}
        wrong = [name for name, value in turned.items() if not math.isfinite(value)]
        if wrong:
            raise NumericalError(f"the cosine of branch {wrong[0]!r} is not finite; check the calibration data")
        return cls(turned)

    @property
    def needs(self) -> frozenset[str]:
        """Weights."""
        return frozenset({WEIGHTS})

    def __call__(self, group: Group, statistics: Statistics) -> Tensor:
        """Score in [0, 2], float64 (1,)."""
        if group.name not in self.turned:
            raise ArgumentError(
                f"{self!r} scores the residual branches that it was made for; {group.name!r} is none of them"
            )
        return torch.tensor([self.turned[group.name]], dtype=torch.float64)


class _Sums(TorchFunctionMode):
    """Meanwhile, follow what branches make to the sums that it goes into."""

    def __init__(self, places: Places, owner: Mapping[str, str], samples: int) -> None:
        super().__init__()
        self.places = places
        self.owner = owner
        self.samples = samples
        # Tensors are kept, so that no id is given twice.
        self.made: dict[int, tuple[str, Tensor]] = {}
        self.found: dict[str, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        tensors = [value for value in [*args, *named.values()] if isinstance(value, Tensor)]
        branches = [self._branch_of(tensor) for tensor in tensors]
        whose = next((name for name in branches if name is not None), None)
        if whose is not None and func in ADDS and len(tensors) == 2 and None in branches:
            stream = tensors[branches.index(None)].clone()
            outputs = func(*args, **named)
            if isinstance(outputs, Tensor) and self._is_stream(stream, outputs):
                self.found[whose] = self._cosines(stream, outputs)
                return outputs
        outputs = func(*args, **named)
        if whose is not None:
            for tensor in outputs if isinstance(outputs, tuple | list) else [outputs]:
                if isinstance(tensor, Tensor):
                    self.made[id(tensor)] = (whose, tensor)
        return outputs

    def _branch_of(self, tensor: Tensor) -> str | None:
        made = self.made.get(id(tensor))
        if made is not None:
            return made[0]
        place = self.places.find(tensor)
        return None if place is None else self.owner.get(place.name)

    def _is_stream(self, stream: Tensor, outputs: Tensor) -> bool:
        """A bias or a number that is added to a branch is no stream."""
        return stream.shape == outputs.shape and len(stream) == self.samples and self.places.find(stream) is None

    def _cosines(self, stream: Tensor, outputs: Tensor) -> Tensor:
        """Of each sample."""
        before, after = (x.reshape(self.samples, -1).double() for x in (stream, outputs))
        return functional.cosine_similarity(before, after, dim=1)
