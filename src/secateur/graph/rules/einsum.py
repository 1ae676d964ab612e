"""Rules that a signature says: shared letters unify, letters that vanish are summed over.

`*` before a letter stands for any number of dimensions; operands are matched from the right, and
starred dimensions broadcast. A letter that several operands hold and the result does not is a
contraction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from secateur.graph.axes import Dims, DimType, Fixed, Product
from secateur.graph.typing import Types, Typing, arguments, shape_of

_Letters = tuple[str, ...]
Operand = tuple[Any, _Letters]


@dataclass(frozen=True)
class Signature:
    """What an operator does to dimensions.

    >>> Signature.parse("input: *b i, weight: o i, bias: o -> *b o").result
    ('*b', 'o')
    """

    operands: tuple[tuple[str, tuple[str, ...]], ...]
    result: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Signature":
        """Read `name: letters, name: letters -> letters`."""
        left, right = text.split("->")
        operands = []
        for part in left.split(","):
            name, letters = part.split(":")
            operands.append((name.strip(), tuple(letters.split())))
        return cls(tuple(operands), tuple(right.split()))


SIGNATURES = {
    name: Signature.parse(text)
    for name, text in {
        "aten.linear": "input: *b i, weight: o i, bias: o -> *b o",
        "aten.addmm": "self: n o, mat1: n i, mat2: i o -> n o",
        "aten.mm": "self: n i, mat2: i o -> n o",
        "aten.bmm": "self: b n i, mat2: b i o -> b n o",
        "aten.baddbmm": "self: b n o, batch1: b n i, batch2: b i o -> b n o",
        "aten.mv": "self: n i, vec: i -> n",
        "aten.dot": "self: i, tensor: i ->",
        "aten.vdot": "self: i, other: i ->",
        "aten.bilinear": "input1: *b i, input2: *b j, weight: o i j, bias: o -> *b o",
    }.items()
}


def signature_rule(typing: Typing, node: fx.Node, signature: Signature) -> Dims:
    """Apply a signature: unify shared letters, note contractions and multiply-adds."""
    operands = [(arguments(node)[name], letters) for name, letters in signature.operands]
    operands = [(value, letters) for value, letters in operands if isinstance(value, fx.Node)]
    letters, out = contract(typing, operands, signature.result)
    return _whole(typing, node, letters, out)


def _whole(typing: Typing, node: fx.Node, letters: Mapping[str, DimType], out: Sequence[str]) -> Dims:
    """Count every product of the contraction; the types of its result."""
    typing.count_macs(node, [letters[key] for key in out] + [dim for key, dim in letters.items() if key not in out])
    return tuple(letters[key] for key in out)


def contract(
    typing: Typing, operands: Sequence[Operand], result: tuple[str, ...]
) -> tuple[dict[str, DimType], list[str]]:
    """The type of each letter of a contraction of `operands`, and the letters of its result."""
    letters: dict[str, DimType] = {}
    holders: dict[str, list[tuple[Any, DimType]]] = {}
    for value, names in operands:
        for letter, dim in match_letters(names, typing.dims(value)):
            if dim.size > 1:
                holders.setdefault(letter, []).append((value, dim))
            letters[letter] = _join(typing, letters.get(letter), dim)
    out = [key for name in result for key in _keys(name, letters)]
    for key, values in holders.items():
        if key not in out:
            _note_contraction(typing, values)
    return letters, out


def match_letters(names: tuple[str, ...], dims: Dims) -> list[tuple[str, DimType]]:
    """Letters beside dimensions, matched from both ends; a starred letter takes what is left.

    >>> from secateur.graph.axes import Fixed
    >>> [key for key, _ in match_letters(("*b", "i"), (Fixed(2), Fixed(3), Fixed(4)))]
    ['b1', 'b0', 'i']
    """
    star = next((k for k, name in enumerate(names) if name.startswith("*")), None)
    if star is None:
        # An operand with fewer dimensions (a vector bias) matches from the right.
        return list(zip(names[len(names) - len(dims) :], dims, strict=True))
    after = len(names) - star - 1
    middle = dims[star : len(dims) - after]
    found = list(zip(names[:star], dims[:star], strict=True))
    found += [(f"{names[star][1:]}{len(middle) - 1 - k}", dim) for k, dim in enumerate(middle)]
    return found + list(zip(names[star + 1 :], dims[len(dims) - after :], strict=True))


def _keys(name: str, letters: dict[str, DimType]) -> list[str]:
    if not name.startswith("*"):
        return [name]
    stem = name[1:]
    numbers = sorted(
        (int(key[len(stem) :]) for key in letters if key[: len(stem)] == stem and key != stem), reverse=True
    )
    return [f"{stem}{number}" for number in numbers]


def _join(typing: Typing, known: DimType | None, dim: DimType) -> DimType:
    """Unify, letting a dimension of one position broadcast."""
    if known is None or known.size == 1:
        return dim
    return known if dim.size == 1 else typing.unify(known, dim)


def _note_contraction(typing: Typing, holders: list[tuple[Any, DimType]]) -> None:
    """A parameter that is summed over is a consumer; two activations have none."""
    consumers = [(value, dim) for value, dim in holders if typing.source(value) is not None]
    for value, dim in consumers or [(None, dim) for _, dim in holders[:1]]:
        typing.contract(dim, value, [factor for factor, _ in holders])


# By the ranks of the operands; 3 stands for three and more.
MATMUL: dict[tuple[int, int], tuple[_Letters, _Letters, _Letters]] = {
    (1, 1): (("i",), ("i",), ()),
    (1, 2): (("i",), ("i", "o"), ("o",)),
    (2, 1): (("n", "i"), ("i",), ("n",)),
    (2, 2): (("n", "i"), ("i", "o"), ("n", "o")),
    (3, 1): (("*b", "i"), ("i",), ("*b",)),
    (1, 3): (("i",), ("*b", "i", "o"), ("*b", "o")),
    (3, 2): (("*b", "i"), ("i", "o"), ("*b", "o")),
    (2, 3): (("n", "i"), ("*b", "i", "o"), ("*b", "n", "o")),
    (3, 3): (("*b", "n", "i"), ("*b", "i", "o"), ("*b", "n", "o")),
}


def matmul_rule(typing: Typing, node: fx.Node) -> Dims:
    """`aten.matmul`: the letters depend on the ranks of the operands."""
    named = arguments(node)
    a, b = named["self"], named["other"]
    left, right, result = MATMUL[min(len(typing.dims(a)), 3), min(len(typing.dims(b)), 3)]
    return _whole(typing, node, *contract(typing, [(a, left), (b, right)], result))


def einsum_rule(typing: Typing, node: fx.Node) -> Dims | None:
    """`aten.einsum`; a letter that one operand repeats (a diagonal) is left to the fallback."""
    named = arguments(node)
    terms, result = parse_equation(named["equation"])
    if any(len(set(term)) != len(term) for term in terms):
        return None
    letters, out = contract(typing, list(zip(named["tensors"], terms, strict=True)), result)
    held = [
        {key for key, dim in match_letters(names, typing.dims(value)) if dim.size > 1}
        for value, names in zip(named["tensors"], terms, strict=True)
    ]
    _count_pairs(typing, node, letters, held, set(out))
    return tuple(letters[key] for key in out)


def parse_equation(equation: str) -> tuple[list[_Letters], _Letters]:
    """The letters of each operand and of the result; an ellipsis is a starred letter.

    Without an arrow the result has the ellipsis, then every letter that occurs once.

    >>> parse_equation("...i,ji")
    ([('*.', 'i'), ('j', 'i')], ('*.', 'j'))
    """
    left, arrow, right = equation.replace(" ", "").replace("...", ".").partition("->")
    if not arrow:
        right = ("." if "." in left else "") + "".join(sorted(c for c in left if c.isalpha() and left.count(c) == 1))
    *terms, result = [tuple("*." if c == "." else c for c in term) for term in (*left.split(","), right)]
    return terms, result


def _count_pairs(
    typing: Typing, node: fx.Node, letters: Mapping[str, DimType], held: list[set[str]], out: set[str]
) -> None:
    """Torch contracts two operands at a time and puts the result behind the others; or follows a given path.

    What only one of the two holds and nothing else needs is summed before.
    """
    path = list(arguments(node).get("path") or ())
    while len(held) > 1:
        chosen = sorted((path.pop(0), path.pop(0))) if path else [0, 1]
        b, a = held.pop(chosen[1]), held.pop(chosen[0])
        needed = out.union(*held)
        met = (a | b) & (needed | (a & b))
        summed = (a & b) - needed
        typing.count_macs(node, [letters[key] for key in met], summed=[letters[key] for key in summed])
        held.append(met - summed)


def embedding_rule(typing: Typing, node: fx.Node) -> Dims:
    """A row of the table for each index; the rows themselves (the vocabulary) stay."""
    named = arguments(node)
    vocabulary, width = typing.dims(named["weight"])
    known = typing.chosen.get(named["indices"])
    if known is not None and known.size == vocabulary.size:
        typing.unify(vocabulary, known)
    else:
        typing.fix([vocabulary], "rows of an embedding are chosen by index (the vocabulary)")
    return (*typing.dims(named["indices"]), width)


def embedding_bag_rule(typing: Typing, node: fx.Node) -> list[Types]:
    """Rows of the table, summed, averaged or the largest of each column; and three tensors of bookkeeping."""
    vocabulary, width = typing.dims(arguments(node)["weight"])
    typing.fix([vocabulary], "rows of an embedding are chosen by index (the vocabulary)")
    bags, *others = shape_of(node) or []
    assert isinstance(bags, tuple)
    rest: list[Types] = [
        tuple(Fixed(n, "where a bag lies") for n in shape) for shape in others if isinstance(shape, tuple)
    ]
    return [(Fixed(bags[0], "a bag of indices"), width), *rest]


SEQUENCE = "positions of a sequence that attention mixes"


def attention_rule(typing: Typing, node: fx.Node) -> Dims:
    """Scaled dot-product attention; with grouped queries, head = key-value head x group."""
    named = arguments(node)
    query, key, value = (typing.dims(named[k]) for k in ("query", "key", "value"))
    if named.get("enable_gqa") and query[-3].size != key[-3].size:
        group = typing.unifier.fresh(query[-3].size // key[-3].size)
        typing.unify(query[-3], Product((key[-3], group)))
        typing.unify(key[-3], value[-3])
        batch = query[:-2]
    else:
        batch = tuple(
            _join(typing, _join(typing, q, k), v) for q, k, v in zip(query[:-2], key[:-2], value[:-2], strict=True)
        )
    if isinstance(named.get("attn_mask"), fx.Node):
        mask = typing.dims(named["attn_mask"])
        typing.fix(mask[-2:], SEQUENCE)
        for own, dim in zip(reversed(batch), reversed(mask[:-2]), strict=False):
            _join(typing, own, dim)
    head_dim = typing.unify(query[-1], key[-1])
    typing.unify(key[-2], value[-2])
    typing.fix([key[-2], query[-2]], SEQUENCE)
    typing.contract(head_dim, None, (named["query"], named["key"]))
    if named.get("scale") is None:
        typing.remark(head_dim, "the default scale of attention follows the size of a head", "operator")
    typing.count_macs(node, [*batch, query[-2], key[-2], head_dim])
    typing.count_macs(node, [*batch, query[-2], key[-2], value[-1]])
    return (*batch, query[-2], value[-1])
