"""The law of surgery on the handmade zoo: a few networks always, each with every plan by `make test-slow`."""

import pytest

from zoo.entry import Entry
from zoo.handmade import ENTRIES
from zoo.law import examine

ALWAYS = (
    "bags",
    "channel_shuffle_functional",
    "complex_rotary",
    "divided_heads_own_bias",
    "glu",
    "grouped_queries",
    "heads_in_halves",
    "involution",
    "linear_attention",
    "lstm_packed_state",
    "lstm_projected_two_way",
    "lstm_projected_two_way_apart",
    "rnn_packed_state_apart",
    "message_passing",
    "pixel_shuffle",
    "shuffled_halves",
    "sparse_experts",
    "spectral_norm",
    "wavenet",
    "weight_norm",
)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.name.removeprefix("handmade/") in ALWAYS], ids=str)
def test_cut_equals_masked_once(entry: Entry) -> None:
    verdict = examine(entry, every_plan=False)
    assert verdict.exact, verdict.failure
    assert verdict.coverage > 0.95, verdict.causes
    assert verdict.macs_left < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_cut_equals_masked(entry: Entry) -> None:
    verdict = examine(entry)
    assert verdict.exact, verdict.failure
