"""Every error that secateur raises on purpose.

SecateurError
  ArgumentError       an argument lies outside its range or does not fit another one
  DataError           a data source is empty, not re-iterable, or holds NaN
  MetricError         a metric or loss gives values of the wrong shape, range or direction
  TraceError          the model cannot be exported, or the example inputs do not fit it
  PlanError           a plan or mask does not fit the model it is for
  SurgeryError        a cut cannot be made, or the cut model is not what it should be
  BudgetError         no allocation meets the budget
  NumericalError      a weight, statistic or loss is not finite, or a matrix is singular
  SavedModelError     a saved model is damaged, incomplete or for another architecture
  WorkerError         workers that should measure points cannot, or all are lost
  StoreError          a run directory or curve store cannot be used
  RecipeError         a recipe is malformed, or names something it may not import
  MissingExtraError   an optional dependency is not installed

Each message says what was given, what was needed, where, and the remedy.
"""

import math


class SecateurError(Exception):
    """Base of every error that secateur raises on purpose."""


class ArgumentError(SecateurError, ValueError):
    """An argument lies outside its range or does not fit another one."""


class DataError(SecateurError, ValueError):
    """A data source is empty, cannot be read twice, or holds values that are not finite."""


class MetricError(SecateurError, ValueError):
    """A metric or loss gives values of the wrong shape, range or direction."""


class TraceError(SecateurError, RuntimeError):
    """The model cannot be exported, or the example inputs do not fit it."""


class PlanError(SecateurError, ValueError):
    """A plan or mask does not fit the model it is for."""


class SurgeryError(SecateurError, RuntimeError):
    """A cut cannot be made, or the cut model does not compute what it should."""


class BudgetError(SecateurError, ValueError):
    """No allocation meets the budget."""


class NumericalError(SecateurError, ArithmeticError):
    """A weight, statistic or loss is not finite, or a matrix is singular."""


class SavedModelError(SecateurError, RuntimeError):
    """A saved model is damaged, incomplete or for another architecture."""


class WorkerError(SecateurError, RuntimeError):
    """Workers that should measure points cannot make ready, or all are lost."""


class StoreError(SecateurError, RuntimeError):
    """A run directory or curve store cannot be used."""


class RecipeError(SecateurError, ValueError):
    """A recipe is malformed, or names something it may not import."""


class MissingExtraError(SecateurError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


def as_number(name: str, value: object) -> float:
    """The value as a float, if it is a number.

    Raises:
        ArgumentError: it is NaN, a string, or anything else that is no number.

    >>> as_number("tolerance", 1)
    1.0
    """
    try:
        found = math.nan if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        found = math.nan
    if math.isnan(found):
        raise ArgumentError(f"{name}={value!r} must be a number")
    return found
