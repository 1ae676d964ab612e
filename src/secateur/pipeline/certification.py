"""What `certify` and `certify_sequence` hand back: statements, and what must be true for them."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.allocation.certificate import Certificate

ON_SLICE = " on slice "
TOGETHER = (
    "Each statement holds with the confidence it names; that all tolerances hold needs no correction, since all tests "
    "had to pass (intersection-union)."
)
REPEATED = "{count} of the {samples} test samples repeat another one, targets and all; they count like any others."
NOT_TRACKED = "No run directory was given, so it is not known whether these test data were used before."
AGAIN = (
    "This is use {number} of these test data, at a level of its own. What was tested must not have been chosen by the "
    "scores of earlier tests on them."
)


@dataclass(frozen=True)
class Certification:
    """Several statements about one pruned model, tested on the same data; printed, it states what it assumes.

    Attributes:
        parts: one certificate for each metric, then for each slice of the data.
        confidence: that was asked for, over all uses of the test data.
        level: what this test spent of 1 - confidence.
        number: it was so many-th use of the test data; None without a run directory.
    """

    parts: tuple[Certificate, ...]
    confidence: float
    level: float
    number: int | None = None

    @property
    def certified(self) -> bool:
        """Whether every part is."""
        return all(part.certified for part in self.parts)

    def sentence(self) -> str:
        """All statements; of slices, only the worst and those that failed."""
        return " ".join(part.sentence() for part in self.shown())

    def shown(self) -> tuple[Certificate, ...]:
        """The parts that are not slices, the slices that failed, and the worst slice."""
        slices = [part for part in self.parts if ON_SLICE in part.metric]
        worst = max(slices, key=lambda part: part.bound, default=None)
        return tuple(p for p in self.parts if p not in slices or not p.certified or p is worst)

    def __str__(self) -> str:
        """The statements, the tests, and what must be true of the data."""
        return "\n".join([*(part.sentence() for part in self.shown()), self.grounds()])

    def grounds(self) -> str:
        """The tests, and what must be true of the data."""
        assumed = list(dict.fromkeys(sentence for part in self.parts for sentence in part.assumptions))
        if len(self.parts) > 1:
            assumed.append(TOGETHER)
        if self.number is None:
            assumed.append(NOT_TRACKED)
        elif self.number > 1:
            assumed.append(AGAIN.format(number=self.number))
        tests = dict.fromkeys(part.method for part in self.parts)
        return f"Test: {'; '.join(tests)}.\nAssumed: {' '.join(assumed)}"

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        parts = [part.to_dict() for part in self.parts]
        own = {"confidence": self.confidence, "level": self.level, "number": self.number}
        return {"certified": self.certified, **own, "parts": parts}


@dataclass(frozen=True, eq=False)
class SequenceCertification:
    """Candidates tested one after the other, up to the first failure.

    Attributes:
        steps: one outcome for each candidate that was tested.
        model: the last one that passed; None if the first failed.
    """

    steps: tuple[Certification, ...]
    model: nn.Module | None = field(repr=False)

    @property
    def shipped(self) -> int | None:
        """Position of the model that passed last."""
        passed = sum(step.certified for step in self.steps)
        return passed - 1 if passed else None

    @property
    def certified(self) -> bool:
        """Whether there is a model to ship."""
        return self.shipped is not None

    def sentence(self) -> str:
        """The outcome in words."""
        if self.shipped is None:
            return f"Candidate 1 failed, and nothing after it was tested: {self.steps[0].sentence()}"
        end = (
            "all passed"
            if self.steps[-1].certified
            else f"candidate {len(self.steps)} failed, and none was tested after"
        )
        return f"Candidate {self.shipped + 1} is the last that passed ({end}): {self.steps[self.shipped].sentence()}"

    def __str__(self) -> str:
        """The outcome, and what must be true."""
        return (
            f"{self.sentence()}\n{self.steps[self.shipped or 0].grounds()} "
            "The order of the candidates was fixed without these test data; a later "
            "candidate may depend on the earlier ones having passed, but not on their scores."
        )
