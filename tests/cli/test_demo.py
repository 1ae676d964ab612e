"""The demo keeps its word."""

from pathlib import Path

import pytest

from secateur.cli.demo import TOLERANCE, run_demo
from secateur.progress import NoProgress


@pytest.mark.slow
def test_the_demo_halves_both_networks_within_the_tolerance(tmp_path: Path) -> None:
    shown = list(run_demo(tmp_path, NoProgress()))
    assert [exhibit.name for exhibit, _, _ in shown] == ["digits-cnn", "digits-lstm"]
    for _, result, report in shown:
        costs = {row.name: row for row in result.report_data.costs}
        assert costs["MACs"].after <= 0.5 * costs["MACs"].before
        assert costs["latency"].verdict.endswith("faster")
        assert result.damage.mean + result.damage.standard_error <= TOLERANCE
        assert result.certificate.before > 0.94
        assert report.stat().st_size < 200_000
