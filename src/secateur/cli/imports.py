"""Importing what a recipe names: only with the user's explicit consent."""

import importlib
from collections.abc import Collection
from typing import Any

from secateur.errors import RecipeError


def resolve(reference: str, allowed: Collection[str]) -> Any:
    """The object that `module:name` stands for.

    Args:
        reference: `package.module:function`.
        allowed: modules or packages that the user allowed on the command line.

    Raises:
        RecipeError: the reference is malformed, its module was not allowed, or it does not exist.
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
        found = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise RecipeError(f"cannot import {module_name!r}: {error}; is it installed, or on PYTHONPATH?") from error
    except AttributeError as error:
        raise RecipeError(f"{module_name!r} has no {name!r}") from error
    if not callable(found):
        raise RecipeError(f"{reference!r} is a {type(found).__name__}; needed a function")
    return found
