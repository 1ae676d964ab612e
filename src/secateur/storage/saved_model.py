"""A pruned model on disk: tensors in safetensors, the rest in a manifest; no pickle.

The architecture comes from the user's own factory. The manifest says which attributes of its modules
differ, the tensors' own shapes say the rest.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.errors import SavedModelError
from secateur.graph.attention import bind_heads, release_heads
from secateur.graph.held_sizes import held_sizes
from secateur.graph.stacks import fit_stacks
from secateur.graph.trace import canonical_names, named_state
from secateur.storage.atomic import sha256_file, write_json, write_safetensors
from secateur.storage.saved_graph import describe_graph, rebuild_graph
from secateur.surgery.attributes import apply
from secateur.surgery.depth import remove_modules, removed_modules
from secateur.surgery.plan import Plan
from secateur.surgery.program import graph_inputs
from secateur.surgery.tensors import replace_state
from secateur.types import Rewrite

SCHEMA_VERSION = 1
WEIGHTS = "weights.safetensors"
MANIFEST = "manifest.json"


def save_model(
    model: nn.Module,
    directory: str | Path,
    *,
    original: nn.Module,
    plan: Plan,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` so that `load_model(factory_of_the_original, directory)` gives it back.

    The manifest is written last: a directory without one is not a saved model.

    Args:
        model: the cut model, or the graph that took its place.
        directory: made if need be; files in it are replaced atomically.
        original: the dense model, of the same class; only its attributes are read.
        plan: the plan that was cut, for people and for replay.
        extra: anything else that JSON can hold.
    """
    aliases = canonical_names(model)
    state = {name: _as_real(tensor) for name, tensor in named_state(model).items() if aliases[name] == name}
    folder = Path(directory)
    inputs = graph_inputs(model)
    changes = attribute_changes(original, model) if inputs is None else []
    (folder / MANIFEST).unlink(missing_ok=True)
    write_safetensors(folder / WEIGHTS, state)
    write_json(
        folder / MANIFEST,
        {
            "schema_version": SCHEMA_VERSION,
            "model_type": _type_name(model if inputs is None else original),
            "sha256": sha256_file(folder / WEIGHTS),
            "aliases": {name: canonical for name, canonical in aliases.items() if name != canonical},
            "rewrites": [[r.module, r.attribute, r.after] for r in changes],
            "removed": removed_modules(model) if inputs is None else {},
            "graph": None if inputs is None else describe_graph(inputs, original, model),
            "plan": plan.to_json(),
            "torch_version": torch.__version__,
            "extra": dict(extra or {}),
        },
    )


def load_model(factory: Callable[[], nn.Module], directory: str | Path) -> nn.Module:
    """Rebuild a saved model from the architecture that `factory` gives.

    Where a graph was saved, the architecture is traced again, on zeros.

    Args:
        factory: returns the dense architecture; its weights do not matter.
        directory: written by `save_model`.

    Raises:
        SavedModelError: a file is missing, truncated or changed, or the factory gives another model.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    tensors = _read_weights(folder, manifest)
    model = factory()
    release_heads(model)
    remove_modules(model, _removed(model, manifest, folder))
    _check_architecture(model, manifest, tensors, folder)
    held = named_state(model)
    tensors = {name: _as_held(tensor, held[name]) for name, tensor in tensors.items()}
    if manifest.get("graph") is not None:
        return rebuild_graph(model, tensors, Plan.from_json(manifest["plan"]), manifest["graph"])
    apply(model, _rewrites(model, manifest, folder))
    replace_state(model, tensors)
    bind_heads(model)
    fit_stacks(model)
    return model


def _as_real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs: safetensors knows single precision ones only."""
    return torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor


def _as_held(tensor: Tensor, held: Tensor) -> Tensor:
    is_pairs = held.is_complex() and not tensor.is_complex()
    return torch.view_as_complex(tensor) if is_pairs else tensor


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a saved model, checked for being one.

    Raises:
        SavedModelError: it is missing, not JSON, or of another schema.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text())
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        raise SavedModelError(
            f"{directory} holds no {MANIFEST}: it is not a saved model, or saving was cut short"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SavedModelError(f"{path} is damaged ({error}); save the model again or restore the file") from error
    if version != SCHEMA_VERSION:
        raise SavedModelError(f"{path} has schema version {version}; this release reads version {SCHEMA_VERSION}")
    return dict(manifest)


def attribute_changes(original: nn.Module, model: nn.Module) -> list[Rewrite]:
    """Integers (and tuples or lists of them) that two models of one class, or their settings, hold otherwise."""
    before, after = held_sizes(original), held_sizes(model)
    return [Rewrite(*place, before[place], size) for place, size in after.items() if before.get(place, size) != size]


def _removed(model: nn.Module, manifest: Mapping[str, Any], folder: Path) -> Mapping[str, Mapping[str, Any]]:
    removed: Mapping[str, Mapping[str, Any]] = manifest.get("removed", {})
    for path in sorted(set(removed) - {name for name, _ in model.named_modules()}):
        raise SavedModelError(
            f"{folder}: the module {path!r} is in the {MANIFEST} but not in the factory's model; the factory builds "
            "another architecture"
        )
    return removed


def _rewrites(model: nn.Module, manifest: Mapping[str, Any], folder: Path) -> tuple[Rewrite, ...]:
    held = held_sizes(model)
    for path, name, _ in manifest["rewrites"]:
        if (path, name) not in held:
            raise SavedModelError(
                f"{folder}: the size {name!r} of module {path!r} is in the {MANIFEST} but not in the factory's model; "
                "the factory builds another architecture"
            )
    return tuple(Rewrite(path, name, held[path, name], after) for path, name, after in manifest["rewrites"])


def _type_name(model: nn.Module) -> str:
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _read_weights(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.exists():
        raise SavedModelError(f"{path} is missing; restore it beside its {MANIFEST}")
    found = sha256_file(path)
    if found != manifest["sha256"]:
        raise SavedModelError(
            f"{path} has sha256 {found[:12]}…, its {MANIFEST} says {str(manifest['sha256'])[:12]}…: "
            "the file is truncated or was changed; restore it or save the model again"
        )
    try:
        # Copies: the file is mapped into memory, at offsets that suit neither kernels nor a later overwrite.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise SavedModelError(f"{path} is not a safetensors file: {error}") from error


def _check_architecture(
    model: nn.Module, manifest: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> None:
    # By the class's own name: the same class may be imported as `__main__` at one time and not at another.
    if _type_name(model).rpartition(".")[2] != str(manifest["model_type"]).rpartition(".")[2]:
        raise SavedModelError(
            f"{folder} holds a {manifest['model_type']}; the factory gives a {_type_name(model)}: pass the factory "
            "of the model that was pruned"
        )
    dropped = (manifest.get("graph") or {}).get("dropped", {})
    aliases = {name: canonical for name, canonical in canonical_names(model).items() if name not in dropped}
    expected = {name for name, canonical in aliases.items() if name == canonical}
    for name in sorted(expected ^ set(tensors)):
        where = (
            "the factory's model but not in the file" if name in expected else "the file but not in the factory's model"
        )
        raise SavedModelError(f"{folder}: tensor {name!r} is in {where}; the factory builds another architecture")
    saved = dict(manifest["aliases"])
    if {n: c for n, c in aliases.items() if n != c} != saved:
        raise SavedModelError(f"{folder}: tied tensors differ from those of the factory's model: {sorted(saved)}")
