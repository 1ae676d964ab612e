"""The public face: names, and where they may come from."""

import inspect

import secateur
from secateur import errors


def test_all_is_what_can_be_imported() -> None:
    assert sorted(secateur.__all__) == list(secateur._HOMES) == sorted(secateur._HOMES)
    for name in secateur.__all__:
        found = getattr(secateur, name)
        assert found.__doc__, name
        assert found.__module__.startswith("secateur")


def test_type_checkers_see_the_same_names() -> None:
    source = inspect.getsource(secateur)
    block = source[source.index("if TYPE_CHECKING") : source.index("_HOMES")]
    for name in secateur.__all__:
        assert f" {name}" in block, name


def test_every_error_is_public_and_has_the_common_base() -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type)]
    assert all(issubclass(kind, secateur.SecateurError) for kind in kinds)
    assert {kind.__name__ for kind in kinds} <= set(secateur.__all__)


def test_after_two_positional_arguments_all_are_by_keyword() -> None:
    # `trace(model, args, kwargs)` and the like mirror torch.export.
    positional = {
        "trace": 3,
        "measure": 3,
        "collect": 3,
        "score": 3,
        "predict": 3,
        "scan": 4,
        "repair": 4,
        "find_groups": 2,
        "allocate": 3,
        "certify": 3,
        "certify_sequence": 3,
        "refine": 4,
    }
    for name in secateur.__all__:
        found = getattr(secateur, name)
        if inspect.isfunction(found):
            kinds = [p.kind for p in inspect.signature(found).parameters.values()]
            assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= positional.get(name, 2), name
