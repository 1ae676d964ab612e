"""Points measured by actors of Ray clusters on this machine, bit for bit those of this process."""

import importlib
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import killable
import saboteurs
from secateur.graph.groups import find_groups
from secateur.graph.trace import trace
from secateur.sensitivity.racing import Racing
from secateur.sensitivity.ray_cluster import RayExecutor
from secateur.sensitivity.scan import scan
from secateur.surgery.mask import mask
from secateur.surgery.plan import plan_widths
from secateur.types import Floats

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra: pip install 'secateur[ray]'"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning"),
]

SPARSITIES = (0.3, 0.5, 0.8)
METRIC = {"metric": saboteurs.accuracy, "higher_is_better": True, "sparsities": SPARSITIES}
MEMORY = 100 * 2**20


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Ray, with a token, on the loopback device; workers find the modules of the tests."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    found = importlib.import_module("ray")
    yield found
    found.shutdown()


TOKEN = secrets.token_hex(32)
"""One for all tests, as a process reads it once."""


def setting():
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(12, 12), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(12, 4)).eval()
    x = torch.randn(120, 12)
    data = [(x[k : k + 40], model(x[k : k + 40]).detach().argmax(-1)) for k in range(0, 120, 40)]
    program = trace(model, (x[:2],))
    groups = find_groups(program)
    return program, groups, {g.name: torch.arange(float(g.size)) for g in groups}, data


def same_curves(one: Mapping[str, Any], other: Mapping[str, Any], but: tuple[str, int] = ("", 0)) -> None:
    """Bit for bit; of group `but[0]` the level `but[1]` is missing in `other`."""
    for name, curve in one.items():
        left = [level for level in range(len(curve.widths)) if (name, level) != but]
        assert other[name].widths == tuple(curve.widths[level] for level in left)
        np.testing.assert_array_equal(curve.damage[left], other[name].damage)
        np.testing.assert_array_equal(curve.loss_damage[left], other[name].loss_damage)


@pytest.mark.parametrize("racing", [None, Racing((0.2,), stage=30, bisect=True)])
def test_a_cluster_of_its_own_gives_what_one_process_gives(ray: ModuleType, racing: Racing | None) -> None:
    job = setting()
    one = scan(*job, sparsities=SPARSITIES, racing=racing)
    two = scan(*job, sparsities=SPARSITIES, racing=racing, executor=RayExecutor(2))
    assert two.tally.measured == one.tally.measured > 0 and two.tally.stopped == one.tally.stopped
    assert not ray.is_initialized()
    same_curves(one, two)


def test_a_cluster_measures_on_after_a_race_as_one_process_does(ray: ModuleType) -> None:
    one, two = killable.deepened(), killable.deepened(executor=RayExecutor(2))
    assert two.tally.measured == one.tally.measured and two.tally.stopped == one.tally.stopped
    same_curves(one, two)


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_a_point_that_kills_or_holds_up_its_workers_is_named_and_all_others_are_kept(
    how: str, ray: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, groups, scores, _ = job = setting()
    one = scan(*job, **METRIC)
    width = one[groups[2].name].widths[1]
    seen = mask(program.model, plan_widths(groups, scores, {groups[2].name: width}), program=program)(job[3][1][0])
    monkeypatch.setenv(saboteurs.VARIABLE, saboteurs.order(how, seen))
    two = scan(*job, **METRIC, executor=RayExecutor(2, retries=1, silence_limit_s=6.0))
    (missing,) = two.tally.unmeasured
    assert (missing.group, missing.width, missing.attempts) == (groups[2].name, width, 2)
    same_curves(one, two, but=(groups[2].name, 1))


@dataclass(frozen=True, eq=False)
class _Trigger:
    """A store that does something when the first point arrives."""

    action: Any
    points: dict[str, Mapping[str, Floats]] = field(default_factory=dict)

    def get(self, key: str) -> None:
        return None

    def put(self, key: str, arrays: Mapping[str, Floats], label: str) -> None:
        if "keeps" not in label:  # the whole model, before workers start
            return
        if not self.points:
            self.action()
        self.points[key] = arrays


def test_a_node_that_dies_in_the_middle_costs_no_point(
    ray: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = setting()
    one = scan(*job, **METRIC)
    monkeypatch.setenv(saboteurs.SECONDS, "0.1")
    cluster = importlib.import_module("ray.cluster_utils").Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False},
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="WARNING")
        cluster.wait_for_nodes()
        assert _refusal_of_a_stranger(cluster.address)
        store = _Trigger(lambda: cluster.remove_node(second, allow_graceful=False))
        with caplog.at_level(logging.WARNING):
            two = scan(*job, **METRIC, executor=RayExecutor(2), store=store)
        assert "a Ray worker was lost" in caplog.text
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert not two.tally.unmeasured and len(store.points) == len(SPARSITIES) * len(job[1])
    same_curves(one, two)


def _refusal_of_a_stranger(address: str) -> bool:
    """Whether a process without the token is turned away."""
    code = f"import ray; ray.init(address={address!r}, log_to_driver=False)"
    strange = dict(os.environ, RAY_AUTH_TOKEN=secrets.token_hex(32))
    try:
        done = subprocess.run([sys.executable, "-c", code], env=strange, capture_output=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode != 0 and b"auth" in done.stderr.lower()
