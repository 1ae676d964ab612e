"""Time to find what can be cut, and to cut it: secateur beside torch-pruning, runs interleaved.

pip install --target DIR --no-deps torch-pruning==1.6.1
PYTHONPATH=DIR python benchmarks/surgery_speed.py --rounds 3 --limit_s 100 --out benchmarks/surgery-speed
"""

import argparse
import copy
import gc
import json
import multiprocessing
import platform
import queue
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from secateur.graph.groups import structure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from zoo.shim import allow_torchvision

Case = tuple[nn.Module, tuple[torch.Tensor, ...], dict[str, Any]]
Runs = dict[str, list[float]]


def resnet152() -> Case:
    """60 million parameters, images of 224."""
    from torchvision.models import resnet152

    return resnet152().eval(), (torch.randn(1, 3, 224, 224),), {}


def swin_s() -> Case:
    """50 million parameters, images of 224."""
    from torchvision.models import swin_s

    return swin_s().eval(), (torch.randn(1, 3, 224, 224),), {}


def llama(hidden: int = 512, inner: int = 1376, heads: int = 8, vocabulary: int = 4096) -> Case:
    """The depth of a large one, and small widths."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=32,
        num_attention_heads=heads,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval(), (torch.zeros(1, 16, dtype=torch.int64),), {"use_cache": False}


def llama_7b_meta() -> Case:
    """The published widths, without values: what does not fit into memory can be planned all the same."""
    with torch.device("meta"):
        return llama(4096, 11008, 32, 32000)


MODELS: dict[str, Callable[[], Case]] = {
    "resnet152": resnet152,
    "swin_s": swin_s,
    "llama-32-layers": llama,
    "llama-7b-meta": llama_7b_meta,
}


class Clock:
    """CPU seconds of this process (one thread) for each stage: other load on the machine does not count."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def time(self, stage: str, work: Callable[[], Any]) -> Any:
        """Do `work` and note how long it took."""
        gc.collect()
        started = time.process_time()
        result = work()
        self.runs.setdefault(stage, []).append(round(time.process_time() - started, 4))
        return result


def run_secateur(case: Case, runs: Runs) -> nn.Module:
    """Half of each group that is exact, by random scores, without verification."""
    model, args, kwargs = case
    clock = Clock(runs)
    program = clock.time("trace", lambda: sc.trace(model, args, kwargs))
    found = clock.time("typing_and_grouping", lambda: structure(program))
    scores = {group.name: torch.rand(group.size) for group in found.groups}

    def prune() -> nn.Module:
        chosen = sc.plan(found.groups, scores, sparsity=0.5)
        return sc.cut(model, chosen, program=program, verify=False)

    return clock.time("plan_and_cut", prune)


def run_torch_pruning(case: Case, runs: Runs) -> nn.Module:
    """The pruner of its examples: half of each group by random importance, the last layer left alone."""
    import torch_pruning as tp

    model, args, kwargs = case
    model = copy.deepcopy(model)
    clock = Clock(runs)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    inputs: Any = {"input_ids": args[0], **kwargs} if kwargs else args
    clock.time("build_dependency", lambda: tp.DependencyGraph().build_dependency(model, example_inputs=inputs))
    pruner = clock.time(
        "build_and_group",
        lambda: tp.pruner.BasePruner(
            model,
            inputs,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=0.5,
            ignored_layers=[last],
            num_heads=_heads(model),
        ),
    )
    clock.time("prune", pruner.step)
    return model


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """What its example for language models tells it of attention."""
    config = getattr(model, "config", None)
    names = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads", "v_proj": "num_key_value_heads"}
    return {
        module: getattr(config, names[name.rpartition(".")[2]])
        for name, module in model.named_modules()
        if config is not None and name.rpartition(".")[2] in names
    }


TOOLS = {"secateur": run_secateur, "torch-pruning": run_torch_pruning}


def measured(model: str, tools: list[str], rounds: int) -> dict[str, Any]:
    """Runs of the tools in turn on one model, after one of each that does not count."""
    torch.set_num_threads(1)
    allow_torchvision()
    torch.manual_seed(0)
    case = MODELS[model]()
    results: dict[str, Any] = {tool: {"parameters_left": 0.0, "seconds": {}} for tool in tools}
    for number in range(rounds + 1):
        for tool in tools[:: 1 if number % 2 == 0 else -1]:
            runs: Runs = results[tool]["seconds"] if number else {}
            small = TOOLS[tool](case, runs)
            Clock(runs).time("copy_of_the_model", lambda: copy.deepcopy(case[0]))
            results[tool]["parameters_left"] = round(_elements(small) / _elements(case[0]), 4)
            if not model.endswith("meta"):
                with torch.no_grad():
                    small(*case[1], **case[2])
    for result in results.values():
        result["seconds"] = {stage: _spread(times) for stage, times in result["seconds"].items()}
    return results


def limited(model: str, tools: list[str], rounds: int, limit_s: float) -> dict[str, Any]:
    """`measured` in a process of its own, ended after `limit_s`."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    process = context.Process(target=_into, args=(results, model, tools, rounds))
    process.start()
    try:
        return dict(results.get(timeout=limit_s))
    except queue.Empty:
        return {"failure": f"no result within {limit_s:.0f} s"}
    finally:
        process.kill()
        process.join()


def _into(results: Any, model: str, tools: list[str], rounds: int) -> None:
    try:
        results.put(measured(model, tools, rounds))
    except Exception as error:
        results.put({"failure": f"{type(error).__name__}: {str(error)[:200]}"})


def _elements(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _spread(times: list[float]) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median": round(middle, 4), "iqr": round(high - low, 4), "runs": times}


def compare(model: str, rounds: int, limit_s: float) -> dict[str, Any]:
    """Both tools on one model; where torch-pruning fails or does not end, that is reported and it is left out."""
    trial = limited(model, ["torch-pruning"], 0, limit_s)
    if "failure" in trial:
        return limited(model, ["secateur"], rounds, limit_s * (rounds + 1)) | {"torch-pruning": trial}
    return limited(model, list(TOOLS), rounds, limit_s * (rounds + 1))


def main() -> None:
    """Measure and write one file for each model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit_s", type=float, default=120)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        report = {
            "model": model,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": 1,
            "rounds": options.rounds,
            "limit_s": options.limit_s,
            "unit": "CPU seconds",
            "results": compare(model, options.rounds, options.limit_s),
        }
        (options.out / f"{model}.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
