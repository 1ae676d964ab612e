"""What test data were used for: a certificate spends them, and a second one has to say so."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.data import Batch
from secateur.errors import StoreError
from secateur.storage.atomic import write_json

USES = "test_uses.json"
SKETCH = 4096
SHARED = 0.01
ROUNDING = 1e-12

Level = float | Literal["sequence"] | None


@dataclass(frozen=True)
class DataMark:
    """By which test data are known again, however they are ordered and batched.

    Samples are compared bit by bit: in another dtype, or otherwise scaled, cropped or padded, they are not known again.

    Attributes:
        samples: how many there are.
        digest: hash of all samples with their targets.
        sketch: the least hashes of inputs, ascending; two sketches tell what share of the samples two data sets have
            in common.
    """

    samples: int
    digest: str
    sketch: tuple[str, ...]

    def shares(self, other: "DataMark") -> bool:
        """Whether more than about 1 % of the smaller of both lie in the other too, with the same targets or not.

        Source: bottom-k sketches, Cohen & Kaplan 2007 (PODC).
        """
        # Up to here both sketches hold every hash.
        reach = min(self._reach, other._reach)
        mine, others = ({key for key in mark.sketch if key <= reach} for mark in (self, other))
        return len(mine & others) > SHARED * min(len(mine), len(others))

    @property
    def _reach(self) -> str:
        """The hash up to which the sketch lists all samples."""
        return self.sketch[-1] if self.samples > len(self.sketch) else "g"


@dataclass(frozen=True)
class Use:
    """One use of test data.

    Attributes:
        claim: hash of what was tested.
        about: what was tested, in words.
        level: what it spent of the probability of a false certificate.
        after: the claim that had to pass first; empty for the first of a sequence.
        when: ISO 8601.
        data: the data.
    """

    claim: str
    about: str
    level: float
    after: str
    when: str
    data: DataMark


@dataclass(frozen=True)
class Spending:
    """What a test may do after it was written down.

    Attributes:
        level: what it spends.
        number: it is so many-th among the uses of these data; the same test again keeps its number.
    """

    level: float
    number: int


def mark(data: Iterable[Batch]) -> DataMark:
    """Read test data once, and hash each sample.

    >>> import torch
    >>> one = mark([Batch((torch.arange(4.0),), {}, torch.zeros(4))])
    >>> two = mark([Batch((torch.tensor([3.0]),), {}, torch.zeros(1)), Batch((torch.arange(3.0),), {}, torch.zeros(3))])
    >>> one == two, one.samples
    (True, 4)
    """
    alone, whole = [], []
    for batch in data:
        alone += _digests(batch, (batch.args, batch.kwargs))
        whole += sample_digests(batch)
    alone.sort()
    whole.sort()
    return DataMark(len(alone), hashlib.sha256("".join(whole).encode()).hexdigest()[:16], tuple(alone[:SKETCH]))


def spend(
    directory: Path, data: DataMark, *, claim: str, about: str, allowed: float, level: Level = None, after: str = ""
) -> Spending:
    """Write down that the data are used, before they are.

    The same claim again spends nothing, and neither does the next step of a sequence whose earlier step passed.
    The levels of all uses of data that share samples add up to at most `allowed`, which bounds the
    probability that any of their certificates is false.

    Args:
        directory: the run directory.
        data: the test data.
        claim: hash of what is tested.
        about: the same in words.
        allowed: one minus the confidence.
        level: what this use spends; None = all that is allowed; "sequence" = 6 allowed / (π² k²) for the
            k-th use, which add up to `allowed`.
        after: the claim of the earlier step, if this is one of a sequence; what may follow it is decided once.

    Raises:
        StoreError: the data were used for something else, and too little of `allowed` is left.
    """
    with _held(directory) as uses:
        same = [use for use in uses if use.data.shares(data)]
        known = next((use for use in same if use.claim == claim and use.data.digest == data.digest), None)
        first = [use for use in same if not use.after]
        if known is not None:
            return _spending(known, same)
        if after:
            _check_next(directory, same, about, after)
            new = Use(claim, about, 0.0, after, _now(), data)
        else:
            wanted = _wanted(level, allowed, len(first) + 1)
            spent = sum(use.level for use in first)
            if first and spent + wanted > allowed + ROUNDING:
                raise StoreError(_refusal(directory, first, spent, wanted, allowed))
            new = Use(claim, about, wanted, "", _now(), data)
        write_json(directory / USES, {"uses": [asdict(use) for use in [*uses, new]]})
        return _spending(new, [*same, new])


def reserve(directory: Path, data: DataMark, *, claim: str, about: str) -> None:
    """Write down that the data are used for choices, which leaves nothing of them for a certificate."""
    spend(directory, data, claim=claim, about=about, allowed=math.inf, level=1.0)


def _wanted(level: Level, allowed: float, number: int) -> float:
    if level == "sequence":
        return 6 * allowed / (math.pi * number) ** 2
    return allowed if level is None else level


def _spending(use: Use, same: list[Use]) -> Spending:
    """Level and number of the use, or of the first step of its sequence."""
    claims = {each.claim: each for each in same}
    while use.after:
        use = claims[use.after]
    return Spending(use.level, [each.claim for each in same if not each.after].index(use.claim) + 1)


def _check_next(directory: Path, same: list[Use], about: str, after: str) -> None:
    for use in same:
        if use.after == after:
            raise StoreError(
                f"{directory / USES}: after this step of the sequence, {use.about} was tested on {use.when}; {about} "
                "in its place would be a second choice on the same test data: use fresh test data"
            )


def sample_digests(batch: Batch) -> list[str]:
    """A hash of each sample with its target."""
    return _digests(batch, ((batch.args, batch.kwargs), batch.targets))


def _digests(batch: Batch, parts: Any) -> list[str]:
    """A hash of each sample's share of `parts`."""
    leaves = pytree.tree_leaves(parts)
    return [_digest([_row(leaf, k, batch.size) for leaf in leaves]) for k in range(batch.size)]


def _row(leaf: Any, k: int, size: int) -> Any:
    # What has no row for each sample belongs to all of them.
    return leaf[k] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf


def _digest(values: list[Any]) -> str:
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def _refusal(directory: Path, first: list[Use], spent: float, wanted: float, allowed: float) -> str:
    earlier = "; ".join(f"on {use.when} for {use.about}, at level {use.level:.4g}" for use in first)
    left = max(allowed - spent, 0.0)
    # Rounded down, so that what is named is accepted.
    remedy = (
        f"pass spend={math.floor(left * 1e4) / 1e4:g}, which is left"
        if left >= 1e-4
        else "nothing is left at this confidence: use fresh test data (a lower confidence leaves more to spend; to "
        'test several models on the same data, pass spend="sequence" from the first on, or use certify_sequence)'
    )
    return (
        f"these test data, or some of them, were used before ({directory / USES}): {earlier}. A certificate at level "
        f"{wanted:.4g} would bring the sum to {spent + wanted:.4g}, above 1 - confidence = {allowed:.4g}: {remedy}"
    )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _held(directory: Path) -> Iterator[list[Use]]:
    """All uses written down in the directory, which no other process changes meanwhile."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / f".{USES}.lock").open("w")
    except OSError as error:
        raise StoreError(
            f"cannot use {directory} as a run directory: {error.strerror or error}; choose another"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield _read(directory / USES)


def _read(path: Path) -> list[Use]:
    if not path.exists():
        return []
    try:
        return [_use(entry) for entry in json.loads(path.read_text())["uses"]]
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{path} is damaged ({error!r}), so it is not known what the test data were used for: restore it from a "
            "copy, or use fresh test data in another run directory"
        ) from error


def _use(entry: Mapping[str, Any]) -> Use:
    data = entry["data"]
    kept = DataMark(int(data["samples"]), str(data["digest"]), tuple(data["sketch"]))
    return Use(**{**entry, "data": kept})
