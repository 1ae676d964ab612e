"""Train the character models that the other benchmarks prune.

python benchmarks/train_char_models.py --text TEXT --models DIR --network lstm --seed 0 --steps 1800
"""

import argparse
import json
import math
from pathlib import Path

import torch
from char_models import NETWORKS, CharTransformer
from char_text import Text, bits_of_windows, random_windows, read_text, windows
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

BATCH = {"lstm": 32, "transformer": 16}
ADAMW = {"lr": 4e-3, "betas": (0.9, 0.98), "weight_decay": 0.05}
MUON = {"lr": 2e-2, "weight_decay": 0.05}
WARMUP_STEPS = 100


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of transformer blocks, which learn most from few steps; AdamW for all else."""
    inner = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is q for q in inner)]
    adamw = torch.optim.AdamW(others, **ADAMW)  # type: ignore[arg-type]
    return [adamw, torch.optim.Muon(inner, **MUON)] if inner else [adamw]


def train(model: nn.Module, text: Text, *, batch: int, steps: int, seed: int) -> None:
    """Warm-up, then a cosine over all steps."""
    generator = torch.Generator().manual_seed(seed)
    steppers = optimisers(model)
    rates = [(group, group["lr"]) for optimiser in steppers for group in optimiser.param_groups]
    model.train()
    for step in range(steps):
        factor = min(1, (step + 1) / WARMUP_STEPS) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group, rate in rates:
            group["lr"] = rate * factor
        x, y = random_windows(text.train, batch, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=isinstance(model, CharTransformer)):
            loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in steppers:
            optimiser.step()
        if step % 50 == 49:
            print(f"step {step + 1} of {steps}: {loss.item() / math.log(2):.3f} bits", flush=True)


def main() -> None:
    """Train one network and save its weights, with the recipe beside them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    text = read_text(options.text)
    model = NETWORKS[options.network](len(text.alphabet))
    recipe = {"batch": BATCH[options.network], "steps": options.steps}
    train(model, text, seed=options.seed, **recipe)
    options.models.mkdir(parents=True, exist_ok=True)
    name = f"{options.network}-{options.seed}"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, options.models / f"{name}.safetensors")
    report = {
        "optimisers": [f"{type(o).__name__} {o.defaults}" for o in optimisers(model)],
        "schedule": f"{WARMUP_STEPS} steps of warm-up, cosine over all steps, gradients clipped to norm 1",
        "arithmetic": "forward pass in bfloat16" if options.network == "transformer" else "float32",
        **recipe,
        "windows_of": 128,
        "seed": options.seed,
        "torch": torch.__version__,
        "validation_bits_per_character": round(bits_of_windows(model, windows(text.validation)).mean().item(), 4),
        "test_bits_per_character": round(bits_of_windows(model, windows(text.test)).mean().item(), 4),
    }
    (options.models / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(report)


if __name__ == "__main__":
    main()
