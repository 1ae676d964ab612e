"""The part of a recipe that asks for zeros without removal."""

from typing import Literal

from pydantic import Field

from secateur.cli.recipe_part import Names, Part

MethodName = Literal[
    "alps", "magnitude", "magnitude-refit", "obc", "ria", "ria-refit", "sparsegpt", "wanda", "wanda-refit"
]  # fmt: skip
AllocationName = Literal["uniform", "erk", "magnitude", "lamp", "owl", "measured"]


class SparsifyPart(Part):
    """Zeros for single weights: how many, where, chosen and made up for how."""

    sparsity: float = Field(gt=0, lt=1)
    pattern: str = Field("unstructured", pattern=r"^(unstructured( per row)?|\d+:\d+|blocks \d+x\d+)$")
    method: MethodName = "obc"
    allocation: AllocationName = "uniform"
    leave: Names = ()
    recalibrate: bool = True
