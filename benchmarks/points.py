"""A table of accuracy lost, filled cell by cell, seed by seed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cifar10 import Images, is_right
from recording import paired
from torch import Tensor, nn

Cell = tuple[str, str, str]
"""Share removed, row, column."""


@dataclass(eq=False)
class Points:
    """Points of accuracy lost on some images, in pairs with the dense network.

    Args:
        model: the dense network.
        part: images and labels.
    """

    model: nn.Module
    part: Images
    after: dict[Cell, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = 100 * is_right(self.model, self.part)

    def note(self, seed: int, cell: Cell, small: nn.Module) -> None:
        """Measure one network."""
        found = self.after.setdefault(cell, [])
        found.append(100 * is_right(small, self.part))
        print(seed, *cell, round((self.before - found[-1]).mean().item(), 2), flush=True)

    def report(self, seeds: Sequence[int]) -> dict[str, Any]:
        """All cells, after these calibration seeds."""
        table: dict[str, Any] = {}
        for (share, row, column), values in self.after.items():
            table.setdefault(share, {}).setdefault(row, {})[column] = paired(self.before, values, 2)
        return {
            "calibration_seeds": list(seeds),
            "dense_accuracy": round(self.before.mean().item(), 2),
            "points_lost": table,
        }
