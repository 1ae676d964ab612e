"""YAML from people we do not know: read without running, growing or guessing anything."""

import re
from pathlib import Path
from typing import Any

import yaml

from secateur.errors import RecipeError

MOST_BYTES = 1_000_000
MOST_ALIASES = 20
MOST_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """Plain values only; `1e-3` is a number, as in YAML 1.2; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_text(path: Path) -> str:
    """A file of at most `MOST_BYTES`.

    Raises:
        RecipeError: it is missing, larger, or not text.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise RecipeError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {MOST_BYTES}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a text file: {error.reason}") from error


def parse_yaml(text: str, where: str) -> Any:
    """One YAML document as plain Python values.

    Aliases and nesting are counted on the stream of events, before anything is built: nested aliases
    grow exponentially, and deep nesting exhausts the stack.

    Raises:
        RecipeError: not YAML, too deep, too many aliases, or a key that is given twice.

    >>> parse_yaml("{rate: 1e-3, widths: [1, 2]}", "here")
    {'rate': 0.001, 'widths': [1, 2]}
    """
    try:
        _check_size(text, where)
        return yaml.load(text, Loader=_Loader)
    except RecipeError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{where} is not YAML: {' '.join(str(error).split())}") from error


def _check_size(text: str, where: str) -> None:
    aliases = depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_DEPTH:
            raise RecipeError(f"{where} is nested more than {MOST_DEPTH} deep; a recipe needs five")
    if aliases > MOST_ALIASES:
        raise RecipeError(f"{where} holds {aliases} YAML aliases; a recipe holds at most {MOST_ALIASES}")
