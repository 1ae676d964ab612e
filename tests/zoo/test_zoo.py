"""The law of surgery on a representative part of the zoo; `make test-zoo` holds all of it to the law."""

import warnings

import pytest

from zoo import summary
from zoo.law import examine
from zoo.table import ENTRIES

# Small networks of as many kinds as there are: plain, residual, grouped, gated, windows, hybrids, encoders, decoders.
CHOSEN = [
    "torchvision/mnasnet0_5",
    "timm/test_resnet",
    "timm/test_nfnet",
    "timm/test_efficientnet",
    "timm/test_convnext",
    "timm/test_vit",
    "timm/cait_xxs24_224",
    "timm/swin_tiny_patch4_window7_224",
    "timm/mlp_mixer.MlpMixer",
    "timm/densenet121",
    "timm/levit_128s",
    "transformers/BertForSequenceClassification",
    "transformers/GPT2LMHeadModel",
    "transformers/LlamaForCausalLM",
    "transformers/T5ForConditionalGeneration",
]


@pytest.mark.parametrize("name", CHOSEN)
def test_law_of_surgery(name: str) -> None:
    entry = next(e for e in ENTRIES if e.name == name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdict = examine(entry, every_plan=False)
    assert verdict.exact, verdict.failure
    assert verdict.coverage > 0.95, verdict.causes


RESULTS = [
    {"name": "a/one", "exact": True, "failure": "", "groups": 3, "flagged": 0, "removable": 90, "fixed": 10}
    | {"coverage": 0.9, "causes": {"no rule for it": 8, "a table": 2}},
    {"name": "a/two", "exact": False, "failure": "AssertionError: the cut model differs from the masked one by 1"},
    {"name": "b/three", "exact": False, "failure": "SurgeryError: module 'x'"},
    {"name": "b/four", "exact": False, "failure": "crashed: Segmentation fault"},
]


def test_a_summary_counts_verdicts_by_family_and_causes_by_positions() -> None:
    lines = summary.table(RESULTS).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines[1:4]] == [
        ["a", "2", "1", "0", "0", "1", "0", "0", "90.0%"],
        ["b", "2", "0", "0", "1", "0", "1", "0", "100.0%"],
        ["all", "4", "1", "0", "1", "1", "1", "0", "90.0%"],
    ]
    assert [line.split() for line in lines[6:]] == [
        ["8.00%", "1", "no", "rule", "for", "it"],
        ["2.00%", "1", "a", "table"],
    ]


def test_a_row_of_the_table_of_networks_names_the_main_cause() -> None:
    text = summary.supported(RESULTS, "make test-zoo")
    assert "| a/one | exact | 3 | 0 | 90.0% | no rule for it |" in text.splitlines()
