"""Text for a value that is the same in every process: what a run was started with is compared by it."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
LONGEST = 400
PLAIN = (type(None), bool, int, float, complex, str, bytes, Tensor, np.ndarray)

Inner = Callable[[Any], str]


def describe(value: Any) -> str:
    """The value in words that do not change with the process, so without any address in memory.

    Functions are told apart by their name, their code, what they close over, and the functions and plain values of
    their own module that they read; arrays and tensors by a hash of their content; other objects by their class
    and their attributes, and by the code of their class if they can be called. What is long ends in a hash of the
    whole.

    >>> describe(functools.partial(torch.optim.SGD, lr=0.1))
    'partial(torch.optim.sgd.SGD, lr=0.1)'
    >>> describe({"rates": (0.1, None), "seed": 3})
    "{'rates': (0.1, None), 'seed': 3}"
    """
    return _text(value, {})


def content_hash(values: Iterable[Any]) -> str:
    """Hash of all that `values` holds: batches of data, for example; read one after the other.

    >>> content_hash([torch.zeros(2)]) == content_hash([torch.zeros(2)]) != content_hash([torch.zeros(3)])
    True
    """
    digest = hashlib.sha256()
    for value in values:
        digest.update(describe(value).encode())
    return digest.hexdigest()[:16]


def without_addresses(text: str) -> str:
    """A text that Python made of a value, without the addresses in memory that it holds.

    >>> without_addresses(f"first {len}, then {describe}")
    'first <built-in function len>, then <function describe>'
    """
    return ADDRESS.sub("", text)


def own_version() -> str:
    """Installed version of secateur."""
    try:
        return version("secateur")
    except PackageNotFoundError:
        return "unknown"


def _text(value: Any, known: dict[int, tuple[Any, str]]) -> str:
    """The description; `known` holds those that were made, and the values themselves so that no id is used twice."""
    if id(value) not in known:
        known[id(value)] = value, f"<a {_name(type(value))} that holds itself>"
        text = _described(value, lambda part: _text(part, known))
        known[id(value)] = value, text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}… #{_hash(text)}"
    return known[id(value)][1]


def _described(value: Any, inner: Inner) -> str:
    if isinstance(value, None | bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, Tensor | np.ndarray):
        return _array(value, inner)
    if isinstance(value, list | tuple | set | frozenset | dict):
        return _collection(value, inner)
    if isinstance(value, functools.partial | ModuleType) or (callable(value) and hasattr(value, "__qualname__")):
        return _named(value, inner)
    return _object(value, inner)


def _array(value: Any, inner: Inner) -> str:
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    else:
        # An array of objects holds their addresses.
        content = value.tobytes() if value.dtype != object else inner(value.tolist()).encode()
    return f"{type(value).__name__}{tuple(value.shape)} {value.dtype} #{_hash(content)}"


def _collection(value: Any, inner: Inner) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(inner(part) for part in value)})"
    # In an order of their own: that of a set of strings changes with the process.
    parts = (f"{inner(k)}: {inner(v)}" for k, v in value.items()) if isinstance(value, dict) else map(inner, value)
    return f"{{{', '.join(sorted(parts))}}}"


def _named(value: Any, inner: Inner) -> str:
    match value:
        case ModuleType():
            return value.__name__
        case functools.partial():
            return _call("partial", [inner(part) for part in (value.func, *value.args)], value.keywords, inner)
        case MethodType():
            return f"{inner(value.__self__)}.{value.__func__.__name__}#{_hash(inner(value.__func__))[:8]}"
        case FunctionType():
            return _function(value, inner)
        case _:
            return _name(value)


def _object(value: Any, inner: Inner) -> str:
    name = f"{_name(type(value))}#{_hash(_class(type(value), inner))[:8]}" if callable(value) else _name(type(value))
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return _call(name, [], fields, inner)
    if hasattr(value, "__dict__"):
        return _call(name, [], vars(value), inner)
    text = repr(value)
    return name if ADDRESS.search(text) else text


def _class(kind: type, inner: Inner) -> str:
    """The code of a class and of its bases in the same module."""
    own = [base for base in kind.__mro__ if base.__module__ == kind.__module__]
    parts = [getattr(part, "__func__", part) for base in own for part in vars(base).values()]
    return " ".join(_body(part, inner) for part in parts if isinstance(part, FunctionType))


def _function(function: FunctionType, inner: Inner) -> str:
    """Name and code, which a lambda needs, what that reads, and all values that are bound to it."""
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    bound = {name: _contents(cell) for name, cell in cells}
    defaults = [inner(value) for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())]
    return _call(f"{_name(function)}#{_hash(_body(function, inner))[:8]}", defaults, bound, inner)


def _body(function: FunctionType, inner: Inner) -> str:
    """The code of a function, and what it reads of its module."""
    return " ".join([_code(function.__code__, inner), *(f"{name}={inner(value)}" for name, value in _read(function))])


def _read(function: FunctionType) -> list[tuple[str, Any]]:
    """Functions and plain values of its own module that a function reads: they may change while its code stays."""
    known = function.__globals__
    return [
        (name, known[name])
        for name in sorted(_names(function.__code__) & known.keys())
        if isinstance(known[name], PLAIN)
        or (isinstance(known[name], FunctionType) and known[name].__module__ == function.__module__)
    ]


def _names(code: CodeType) -> set[str]:
    """The names that code looks up, also within functions that it makes."""
    inside = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inside)


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is not bound yet
        return None


def _code(code: CodeType, inner: Inner) -> str:
    constants = [_code(c, inner) if isinstance(c, CodeType) else inner(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _call(name: str, args: list[str], keywords: Mapping[str, Any], inner: Inner) -> str:
    # Private attributes last: what is long is cut off.
    ordered = sorted(keywords.items(), key=lambda item: (item[0].startswith("_"), item[0]))
    parts = [*args, *(f"{key}={inner(value)}" for key, value in ordered)]
    return f"{name}({', '.join(parts)})"


def _name(named: Any) -> str:
    module = getattr(named, "__module__", None)
    return named.__qualname__ if module in {None, "builtins"} else f"{module}.{named.__qualname__}"


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]
