"""What a repair did, and what it left as it was."""

from dataclasses import dataclass
from typing import Literal

from secateur.types import Note

Kind = Literal["least squares", "bias", "batch norm", "recurrent"]

NO_BETTER = "kept as it was: the fitted weights were no better on held-out calibration samples"
READ_OTHERWISE = "weight kept as it was: the model reads it in another way too, which a fit would change"
REORDERED = "kept as it was: its rows in the cut model are not those of one use in the dense model"
OTHER_CALLS = "kept as it was, with all that follows: the dense model does not use it here"
REPEATED_NORM = "kept as it was: called several times, with other inputs each time"
REPEATED_LAYER = "kept as it was: a recurrent layer that is called several times"


@dataclass(frozen=True)
class Change:
    """One thing that was repaired.

    Attributes:
        where: the parameter, or the rows of one (`"attention.in_proj_weight[0:64]"`); of a batch norm, its mean.
        kind: how.
        before: held-out squared error of the outputs before, as a share of their own size.
        after: likewise, after.
    """

    where: str
    kind: Kind
    before: float
    after: float


@dataclass(frozen=True)
class Mended:
    """What became of one step.

    Attributes:
        changes: what was repaired.
        notes: what was left as it was, and why.
    """

    changes: tuple[Change, ...] = ()
    notes: tuple[Note, ...] = ()


def left(where: str, why: str) -> Mended:
    """Nothing was changed."""
    return Mended(notes=(Note(where, why),))
