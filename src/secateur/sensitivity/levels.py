"""The widths at which a scan measures each group."""

from collections.abc import Mapping, Sequence

from secateur.errors import ArgumentError
from secateur.surgery.plan import kept_width
from secateur.types import Group

Sparsities = Sequence[float] | Mapping[str, Sequence[float]]

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def levels_of(groups: Sequence[Group], sparsities: Sparsities) -> dict[str, tuple[int, ...]]:
    """Group -> the widths to measure, from the widest to the narrowest, without the whole."""
    if not isinstance(sparsities, Mapping):
        return {group.name: scanned_widths(group, sparsities) for group in groups}
    by_name = {group.name: group for group in groups}
    unknown = sorted(set(sparsities) - set(by_name))
    if unknown:
        raise ArgumentError(f"sparsities are given for {unknown}; there are groups {list(by_name)}")
    return {name: scanned_widths(by_name[name], own) for name, own in sparsities.items()}


def scanned_widths(group: Group, sparsities: Sequence[float]) -> tuple[int, ...]:
    """The widths that keep these fractions out, from the widest to the narrowest, without the whole.

    Raises:
        ArgumentError: what is no fraction, or one outside (0, 1).
    """
    try:
        fractions = [float(sparsity) for sparsity in sparsities]
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"sparsities={sparsities!r}: needed fractions, such as (0.3, 0.6), or those of each group by name"
        ) from error
    for sparsity in fractions:
        if not (0 < sparsity < 1 or (sparsity == 1 and group.minimum == 0)):
            raise ArgumentError(f"sparsities hold {sparsity}; each must lie strictly between 0 and 1")
    widths = {kept_width(group, sparsity) for sparsity in fractions} - {group.width}
    if group.minimum == 0 and fractions:
        widths.add(0)
    return tuple(sorted(widths, reverse=True))
