"""Importing what a recipe names: only with the user's explicit consent."""

import importlib
from collections.abc import Collection, Sequence
from typing import Any

from secateur.errors import RecipeError

REFERENCES = ("model.ref", "data.ref")


def resolve(reference: str, allowed: Collection[str]) -> Any:
    """The object that `module:name` stands for.

    Args:
        reference: `package.module:function`.
        allowed: modules or packages that the user allowed on the command line.

    Raises:
        RecipeError: the reference is malformed, its module was not allowed, fails, or does not exist.
    """
    module_name, colon, name = reference.partition(":")
    if not colon or not module_name or not name.isidentifier():
        raise RecipeError(f"{reference!r} is not a reference; needed module:function, such as mypackage.models:build")
    if not any(module_name == a or module_name.startswith(a + ".") for a in allowed):
        raise RecipeError(
            f"the recipe wants to import {module_name!r}, which runs its code; if you trust it, pass "
            f"--allow-import {module_name}"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise RecipeError(f"cannot import {module_name!r}: {error}; is it installed, or on PYTHONPATH?") from error
    except Exception as error:
        raise RecipeError(
            f"cannot import {module_name!r}: its code fails with {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise RecipeError(f"{module_name!r} has no {name!r}")
    if not callable(found):
        raise RecipeError(f"{reference!r} is a {type(found).__name__}; needed a function")
    return found


def named_modules(overrides: Sequence[str]) -> tuple[str, ...]:
    """Modules that the user named in `--set` on the command line, which is consent enough.

    >>> named_modules(["model.ref=mine.models:build", "seed=3"])
    ('mine.models',)
    """
    pairs = [override.partition("=") for override in overrides]
    return tuple(value.partition(":")[0] for key, _, value in pairs if key in REFERENCES and ":" in value)
