"""Descriptions are equal where the meaning is, in every process, and differ where it does."""

import dataclasses
import enum
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateur.describe import LONGEST, content_hash, describe


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Bare:
    """Attributes, and no text of its own."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__ |= attributes

    def method(self) -> None:
        """Do nothing."""


@dataclasses.dataclass(frozen=True)
class Noun:
    rate: float
    function: object = None


class Slotted:
    __slots__ = ("value",)


def optimizer(rate: float):
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def knot() -> Bare:
    found = Bare(rate=0.1)
    found.me = found
    return found


def unbound():
    def function():
        return later

    text = describe(function)
    later = 1
    return text, later


def examples() -> list[object]:
    """One of each kind, made anew at each call."""
    return [
        optimizer(0.1), functools.partial(optimizer, rate=0.1), Bare(rate=0.1, f=optimizer(0.1)), Noun(0.1, optimizer),
        {"a", "b", "c", "d"}, {"x": {1: "y"}}, Bare().method, nn.CrossEntropyLoss(torch.ones(3)), torch.relu, np.sqrt,
        torch.optim.SGD, torch, knot(), Slotted(), torch.Generator(), object(), Colour.RED, Path("/a/b"), torch.float32,
        np.array([Bare(), None]), np.arange(3), len, str.upper, lambda k: k in {"a", "b", "c"},
        {"long": list(range(10_000))}, functools.lru_cache(optimizer), frozenset({("b", 1), ("a", 2)}), (), None,
    ]  # fmt: skip


def test_a_description_is_the_same_in_every_process() -> None:
    # Every process places its objects elsewhere, and orders its sets of strings in its own way.
    script = "import test_describe as t\nfor example in t.examples(): print(ascii(t.describe(example)))"
    seen = set()
    for seed in ("1", "2", "3"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        made = f"garbage = [object() for _ in range({seed}000)]\n"
        done = subprocess.run(
            [sys.executable, "-c", made + script], env=environment, capture_output=True, text=True, check=True
        )
        seen.add(done.stdout)
    assert len(seen) == 1
    (text,) = seen
    assert "0x" not in text and len(text.splitlines()) == len(examples())


def test_descriptions_of_examples_made_anew_are_equal_and_short_and_tell_them_apart() -> None:
    texts = [describe(example) for example in examples()]
    assert texts == [describe(example) for example in examples()]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= LONGEST


def defined(source: str, name: str = "measure") -> object:
    """What a file of a user defines, who may change it between two runs."""
    module: dict[str, object] = {"__name__": "mine"}
    exec(source, module)
    return module[name]


HELPED = "def helper(k): return k + {}\n\ndef measure(k): return [helper(i) for i in k]"
READING = "factor = {}\n\ndef measure(k): return factor * k"
CALLED = "class Base:\n    def __call__(self, k): return self.part(k)\n    {}\nclass Last(Base): pass\nmeasure = Last()"
BOUND = "class Owner:\n    def method(self, k): return k + {}\nmeasure = Owner().method"
ROUND = "def other(k): return measure(k - 1) + {}\n\ndef measure(k): return other(k)"


@pytest.mark.parametrize(
    ("source", "one", "two"),
    [
        (HELPED, "1", "2"),
        (READING, "1", "2"),
        (CALLED, "def part(self, k): return 1", "def part(self, k): return 2"),
        (CALLED, "@staticmethod\n    def part(k): return 1", "@staticmethod\n    def part(k): return 2"),
        (BOUND, "1", "2"),
        (ROUND, "1", "2"),
    ],
)
def test_what_a_function_reads_of_its_module_is_part_of_it(source: str, one: str, two: str) -> None:
    first = describe(defined(source.format(one)))
    assert first == describe(defined(source.format(one))) != describe(defined(source.format(two)))


@pytest.mark.parametrize(
    "source",
    [
        "import os\nother = {0}\ncalls = [{0}]\n\ndef measure(k): return os.path.join(k, calls[0])",
        "def theirs(k): return {0}\ntheirs.__module__ = 'theirs'\n\ndef measure(k): return theirs(k)",
        "class Theirs:\n    __module__ = 'theirs'\n    def __call__(self, k): return {0}\n"
        "class Mine(Theirs): pass\nmeasure = Mine()",
    ],
)
def test_what_a_function_does_not_read_or_is_of_other_modules_is_no_part_of_it(source: str) -> None:
    assert describe(defined(source.format(1))) == describe(defined(source.format(2)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (optimizer(0.1), optimizer(0.2)),
        (lambda k: k + 1, lambda k: k + 2),
        (lambda k: k + 1, lambda k: k - 1),
        (lambda k: abs(k) + 1, lambda k: max(k) + 1),
        (lambda k: [k + 1 for _ in k], lambda k: [k + 2 for _ in k]),
        (lambda k=1: k, lambda k=2: k),
        (lambda *, k=1: k, lambda *, k=2: k),
        (functools.partial(optimizer, rate=0.1), functools.partial(optimizer, rate=0.2)),
        (functools.partial(optimizer, 0.1), functools.partial(optimizer, 0.2)),
        (functools.partial(optimizer, 0.1), functools.partial(abs, 0.1)),
        (Bare(rate=0.1), Bare(rate=0.2)),
        (Bare(rate=0.1), Bare(other=0.1)),
        (Bare(rate=0.1).method, Bare(rate=0.2).method),
        (Noun(0.1, optimizer(0.1)), Noun(0.1, optimizer(0.2))),
        (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss()),
        (nn.CrossEntropyLoss(torch.ones(2)), nn.CrossEntropyLoss(torch.zeros(2))),
        (torch.relu, torch.sigmoid),
        (Colour.RED, Colour.BLUE),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.tensor([0.0, 1.0])),
        (torch.zeros(0, 3), torch.zeros(0, 2)),
        (np.zeros(2), np.zeros(2, dtype=np.float32)),
        (np.zeros(2000), np.eye(1, 2000)[0]),
        (np.array([1, None]), np.array([2, None])),
        ("1", 1),
        ((1, 2), (2, 1)),
        ({1: 2}, {1: 3}),
        ({1, 2}, {1, 3}),
        ({1: 2}, {2: 2}),
        (list(range(10_000)), [*range(9_999), 0]),
        (None, ()),
    ],
)
def test_what_differs_is_told_apart(one: object, other: object) -> None:
    assert describe(one) != describe(other)


def test_a_variable_that_is_not_bound_yet_is_none() -> None:
    assert "(later=None)" in unbound()[0]


def test_what_holds_itself_is_described_once() -> None:
    assert describe(knot()).endswith("Bare that holds itself>, rate=0.1)")


def test_what_is_cut_off_are_private_attributes() -> None:
    assert "label_smoothing=0.1" in describe(nn.CrossEntropyLoss(label_smoothing=0.1))


def test_the_hash_of_content_depends_on_values_and_order() -> None:
    one, two = torch.zeros(2), torch.ones(2)
    assert content_hash([one, two]) == content_hash(iter([one.clone(), two.clone()]))
    assert len({content_hash(v) for v in ([one, two], [two, one], [one], [])}) == 4
