"""torch-pruning 1.6.1 on the inner channels of ResNet-20, at given widths, by each of its criteria."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from cifar10 import Images
from torch import Tensor, nn
from torch.nn import functional

EXAMPLE = torch.zeros(1, 3, 32, 32)
Scorer = Callable[[nn.Module, list[Images]], Any]


def pruned(model: nn.Module, scores: Mapping[str, Tensor], fraction: float) -> nn.Module:
    """A copy without the `fraction` of the inner channels of each block that score lowest."""
    import torch_pruning as tp

    model = copy.deepcopy(model).eval()
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=EXAMPLE)
    for name, block in inner_blocks(model).items():
        removed = scores[name].argsort()[: round(fraction * len(scores[name]))].tolist()
        dependencies.get_pruning_group(block.conv1, tp.prune_conv_out_channels, idxs=removed).prune()
    return model


def scored(model: nn.Module, calibration: list[Images], criterion: str) -> dict[str, Tensor]:
    """What a criterion says of the inner channels of each block."""
    import torch_pruning as tp

    model = copy.deepcopy(model).eval()
    importance = scorers()[criterion](model, calibration)
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=EXAMPLE)
    found = {}
    for name, block in inner_blocks(model).items():
        everything = list(range(block.conv1.out_channels))
        group = dependencies.get_pruning_group(block.conv1, tp.prune_conv_out_channels, idxs=everything)
        found[name] = importance(group).detach()
    return found


def inner_blocks(model: nn.Module) -> dict[str, Any]:
    """The nine blocks, by name."""
    return {name: module for name, module in model.named_modules() if name and hasattr(module, "conv1")}


def scorers() -> dict[str, Scorer]:
    """Its criteria, prepared as their documentation says; gradients are those of the labelled calibration images."""
    from torch_pruning.pruner import importance as of

    return {
        "L1 of the filter": lambda *_: of.GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None),
        "L1": lambda *_: of.GroupMagnitudeImportance(p=1),
        "L2": lambda *_: of.GroupMagnitudeImportance(p=2),
        "BN scale": lambda *_: of.BNScaleImportance(),
        "LAMP": lambda *_: of.LAMPImportance(),
        "FPGM": lambda *_: of.FPGMImportance(),
        "Taylor": lambda m, data: _with_gradients(m, data, of.GroupTaylorImportance()),
        "Hessian": _hessian,
        "OBDC": _obdc,
        "activation": _activation,
    }


def _with_gradients(model: nn.Module, data: list[Images], importance: Any) -> Any:
    model.zero_grad()
    for x, y in data:
        functional.cross_entropy(model(x), y).backward()
    return importance


def _hessian(model: nn.Module, data: list[Images]) -> Any:
    from torch_pruning.pruner.importance import GroupHessianImportance

    importance = GroupHessianImportance()
    for x, y in data:
        for row in range(len(x)):
            model.zero_grad()
            functional.cross_entropy(model(x[row : row + 1]), y[row : row + 1]).backward()
            importance.accumulate_grad(model)
    return importance


def _obdc(model: nn.Module, data: list[Images]) -> Any:
    """As its pruner prepares it: Fisher information by labels that the model's own output draws."""
    from torch_pruning.pruner.importance import OBDCImportance

    importance = OBDCImportance(num_classes=10)
    generator = torch.Generator().manual_seed(0)
    handles = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in [module for block in inner_blocks(model).values() for module in (block.conv1, block.conv2)]:
            importance.modules.append(layer)
            handles.append(layer.register_forward_pre_hook(importance._save_input))
            handles.append(layer.register_full_backward_hook(importance._save_grad_output))
        for x, _ in data:
            model.zero_grad()
            outputs = model(x)
            drawn = torch.multinomial(outputs.detach().softmax(1), 1, generator=generator).squeeze(1)
            functional.cross_entropy(outputs, drawn).backward()
            importance.step()
    for handle in handles:
        handle.remove()
    return importance


def _activation(model: nn.Module, data: list[Images]) -> Any:
    from torch_pruning.pruner.importance import ActivationImportance

    importance = ActivationImportance()
    inputs = torch.cat([x for x, _ in data])
    with importance.compute_importance(model), torch.no_grad():
        model(inputs)
    return importance
