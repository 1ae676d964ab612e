"""What is wrong with a recipe, in words: the place, what was given, what is needed."""

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """All problems of a recipe in one line; unknown keys with the nearest known one."""
    return "; ".join(_problem(dict(problem), root) for problem in error.errors(include_url=False))


def _problem(problem: dict[str, Any], root: type[BaseModel]) -> str:
    location: tuple[int | str, ...] = problem["loc"]
    place, keys = _follow(location, root)
    match problem["type"]:
        case "extra_forbidden":
            hint = _nearest(str(location[-1]), keys) or f"; known here: {', '.join(sorted(keys))}"
            return f"unknown key {place!r}{hint}"
        case "missing":
            return f"{place!r} is missing"
        case "union_tag_not_found":
            return f"'{place}.kind' is missing"
        case "union_tag_invalid":
            tags = problem["ctx"]["expected_tags"]
            given = problem["ctx"]["tag"]
            return f"{place}.kind: got {given!r}: needed one of {tags}{_nearest(given, tags.replace(',', '').split())}"
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):
        return f"{place}: {message}"
    return f"{place}: got {problem['input']!r}: {message}"


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, [k.strip("'") for k in known], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _follow(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[str, list[str]]:
    """The dotted place without the tags of unions, and the keys that its mapping may have."""
    names: list[str] = []
    keys = list(root.model_fields)
    choices: tuple[type[BaseModel], ...] = (root,)
    for step in map(str, location):
        tagged = [c for c in choices if len(choices) > 1 and step in typing.get_args(c.model_fields["kind"].annotation)]
        if tagged:
            choices = tuple(tagged)
            keys = list(tagged[0].model_fields)
            continue
        names.append(step)
        if len(choices) == 1:
            keys = list(choices[0].model_fields)
            choices = _parts(choices[0], step)
    return ".".join(names) or "recipe", keys


def _parts(model: type[BaseModel], name: str) -> tuple[type[BaseModel], ...]:
    field = model.model_fields.get(name)
    kinds = () if field is None else (field.annotation, *typing.get_args(field.annotation))
    return tuple(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
