"""Which weights become sparse, in what pattern, how far and by what method: decided, serialisable, nothing done yet."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secateur.errors import ArgumentError, PlanError
from secateur.sparsity.alps import ALPS
from secateur.sparsity.method import Masked, Method
from secateur.sparsity.obc import OBC
from secateur.sparsity.patterns import Pattern, check_sparsity, pattern_named
from secateur.sparsity.sparsegpt import SparseGPT

SCHEMA_VERSION = 1
METHODS: dict[str, Any] = {cls.__name__: cls for cls in (Masked, SparseGPT, OBC, ALPS)}


@dataclass(frozen=True)
class SparsityPlan:
    """What `sparsify` is to do.

    Attributes:
        sparsity: weight, as `find_weights` names it -> fraction that becomes zero. Weights not named stay dense.
        pattern: what may be zero.
        method: chooses the zeros and the values of the rest.

    >>> plan = SparsityPlan({"fc.weight": 0.5}, pattern_named("2:4"), SparseGPT())
    >>> SparsityPlan.from_json(plan.to_json()) == plan
    True
    """

    sparsity: Mapping[str, float]
    pattern: Pattern
    method: Method

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives it back.

        Raises:
            PlanError: the method is not one of secateur's own.
        """
        kind = type(self.method).__name__
        if METHODS.get(kind) is not type(self.method):
            raise PlanError(f"a plan with the method {kind} cannot be written: only {', '.join(METHODS)} can")
        settings: Any = self.method
        return json.dumps(
            {
                "schema_version": SCHEMA_VERSION,
                "pattern": str(self.pattern),
                "method": {"name": kind, **asdict(settings)},
                "sparsity": dict(self.sparsity),
            }
        )

    @staticmethod
    def from_json(text: str) -> "SparsityPlan":
        """Read a plan back.

        Raises:
            PlanError: the text is no such plan.
        """
        try:
            raw = json.loads(text)
            version, method = raw["schema_version"], dict(raw["method"])
            pattern = pattern_named(raw["pattern"])
            sparsity = {str(name): float(value) for name, value in raw["sparsity"].items()}
            found: Method = METHODS[method.pop("name")](**method)
            for value in sparsity.values():
                check_sparsity(value)
        except (ValueError, KeyError, TypeError, AttributeError, ArgumentError) as error:
            raise PlanError(f"this is not a sparsity plan in JSON: {error}; write one with plan.to_json()") from error
        if version != SCHEMA_VERSION:
            raise PlanError(f"the plan has schema version {version}; this release reads version {SCHEMA_VERSION}")
        return SparsityPlan(sparsity, pattern, found)
