"""The part of a recipe that asks for zeros without removal."""

from typing import Literal

from pydantic import Field

from secateur.cli.recipe_part import Names, Part

MethodName = Literal[
    "alps", "magnitude", "magnitude-refit", "obc", "ria", "ria-refit", "sparsegpt", "wanda", "wanda-refit"
]  # fmt: skip
AllocationName = Literal["uniform", "erk", "magnitude", "lamp", "owl", "measured"]


class OffloadPart(Part):
    """Where weights and activations go that are not at work, and how many bytes of them stay in memory."""

    folder: str
    memory_bytes: int = Field(2**28, ge=0)


class SparsifyPart(Part):
    """Zeros for single weights: how many, where, chosen and made up for how."""

    sparsity: float = Field(gt=0, lt=1)
    pattern: str = Field("unstructured", pattern=r"^(unstructured( per row)?|\d+:\d+|blocks \d+x\d+)$")
    method: MethodName = "obc"
    allocation: AllocationName = "uniform"
    leave: Names = ()
    recalibrate: bool = True
    offload: OffloadPart | None = None
