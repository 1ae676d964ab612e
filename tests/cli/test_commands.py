"""The commands as a script sees them: exit codes, messages, streams."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import secateur as sc
from secateur import errors
from secateur.cli import job, main
from secateur.cli.loaders import load_data
from secateur.cli.recipe import load_recipe
from secateur.progress_bars import PlainProgress, TerminalProgress, make_progress
from secateur.zoo.digits import digits_cnn

COMMANDS = ("demo", "inspect", "scan", "front", "prune", "sparsify", "certify", "report")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(digits_cnn(4).state_dict(), tmp_path / "w.safetensors")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {ref: digits-cnn, weights: w.safetensors, arguments: {channels: 4}, example_batch: 2}\n"
        "data: {kind: digits, validation: {stop: 40}}\ntolerance: 0.02\nsparsities: [0.5]\ncalibration_samples: 8\n"
    )
    return path


def code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main.run([str(a) for a in arguments])
    return int(stopped.value.code or 0)


def test_help_teaches_every_command() -> None:
    top = CliRunner().invoke(main.app, ["--help"])
    assert top.exit_code == 0 and all(name in top.output for name in COMMANDS)
    for name in COMMANDS:
        shown = CliRunner().invoke(main.app, [name, "--help"])
        assert shown.exit_code == 0 and "Exit codes" in shown.output


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom secateur.cli.main import run\n"
        "try:\n    run(['--help'])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert min(times) < 1.5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.RecipeError("m"), 2),
        (errors.ArgumentError("m"), 2),
        (errors.MissingExtraError("m"), 2),
        (errors.DataError("m"), 3),
        (errors.MetricError("m"), 3),
        (errors.TraceError("m"), 4),
        (errors.SurgeryError("m"), 4),
        (errors.BudgetError("m"), 5),
        (errors.StoreError("m"), 6),
        (OSError(28, "No space left on device"), 6),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("m"), 1),
    ],
)
def test_exit_code_of_each_error(monkeypatch, capsys, recipe: Path, error: BaseException, expected: int) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(main, "_load", fail)
    assert code("inspect", recipe) == expected
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.startswith("error: ") and seen.err.count("\n") == 1


def test_a_traceback_only_when_asked_for(capsys, tmp_path: Path) -> None:
    for place in (0, 1, 2):
        words = ["inspect", str(tmp_path / "none.yaml")]
        words.insert(place, "--traceback")
        assert code(*words) == 2
        seen = capsys.readouterr().err
        assert "Traceback (most recent call last)" in seen and "error: cannot read the recipe" in seen
    assert code("inspect", tmp_path / "none.yaml") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_wrong_usage_is_two(capsys, recipe: Path, tmp_path: Path) -> None:
    for words in (["nonsense"], ["prune", recipe], ["inspect"], ["scan", recipe, "--threads", "-1"], ["--nonsense"]):
        assert code(*words) == 2
        assert "error: " in capsys.readouterr().err
    assert code("inspect", recipe, "--set", "data.train.start=[") == 2
    assert code("inspect", recipe, "--set", "data.test.stop=5000") == 3


def test_a_report_that_is_none_is_a_storage_error(capsys, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xd0\xff nonsense")
    assert code("report", tmp_path) == 6
    assert "is not a report of this release" in capsys.readouterr().err
    assert code("report", tmp_path / "none") == 6


def test_inspect_and_scan_print_to_stdout_in_80_columns(capsys, recipe: Path, tmp_path: Path) -> None:
    assert code("inspect", recipe) == 0
    seen = capsys.readouterr()
    assert "blocks.1.conv1" in seen.out and "what is fixed, and why" in seen.out and "MACs" in seen.out
    assert code("scan", recipe, "--out", tmp_path / "run") == 0
    scanned = capsys.readouterr().out
    assert "blocks.1.conv1" in scanned and (tmp_path / "run/curves.sqlite").exists()
    lines = [line for line in (seen.out + scanned).splitlines() if not line.startswith("curves: ")]
    assert max(map(len, lines)) <= 80
    (tmp_path / "file").touch()
    assert code("scan", recipe, "--out", tmp_path / "file/run") == 6


def test_scan_shows_measured_levels_only_the_most_sensitive_group_first(capsys, recipe: Path, tmp_path: Path) -> None:
    assert code("scan", recipe, "--out", tmp_path / "run", "--set", "metric=cross_entropy") == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if "conv" in line]
    assert len(rows) > 2 and all([cell == "–" for cell in row[1:]] == [True, True, False, True, True] for row in rows)
    damages = [float(row[3]) for row in rows]
    assert damages == sorted(damages, reverse=True) and damages[0] > damages[-1]


def test_front_prints_measured_points_and_writes_them(capsys, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "front"
    assert code("front", recipe, "--out", out, "--set", "objectives=[least damage, uniform]") == 0
    printed = capsys.readouterr().out
    points = json.loads((out / "front.json").read_text())
    assert "whole" in printed and "uniform" in printed and "front.json" in printed
    assert points[0]["left"] == 1 and points[0]["damage"] == 0
    assert all(point["left"] <= point["budget"] for point in points) and len(points) > 1
    # The file says what the table says.
    rows = [line.split() for line in printed.splitlines() if "%" in line][: len(points)]
    assert [float(row[3]) for row in rows] == pytest.approx([point["predicted"] for point in points], rel=1e-3)
    assert code("front", recipe, "--out", out, "--set", "objectives=[steepest]") == 2


def test_a_module_named_on_the_command_line_is_imported(capsys, recipe: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "named_on_line.py").write_text("from secateur.zoo.digits import digits_cnn as build\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert code("inspect", recipe, "--set", "model.ref=named_on_line:build") == 0
    text = recipe.read_text().replace("ref: digits-cnn", "ref: 'named_on_line:build'")
    recipe.write_text(text)
    assert code("inspect", recipe) == 2
    assert "pass --allow-import named_on_line" in capsys.readouterr().err
    assert code("inspect", recipe, "--allow-import", "named_on_line") == 0


def test_ctrl_c_stops_cleanly(tmp_path: Path, recipe: Path) -> None:
    # The user's module reports that it runs, and waits to be interrupted.
    (tmp_path / "slow_module.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    # A shell starts background jobs with SIGINT ignored; this child always hears it.
    script = (
        "import signal, sys; from secateur.cli.main import run; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); run(sys.argv[1:])"
    )
    words = [
        "inspect",
        str(recipe),
        "--set",
        "data={kind: python, ref: 'slow_module:f'}",
        "--allow-import",
        "slow_module",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 130
    assert shown == "error: stopped; run the same command again to resume\n"


def test_plain_lines_are_seconds_apart_over_all_stages(capsys, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = PlainProgress()
    for name in ("one", "two", "three", "four"):
        with progress.stage(name, 2) as advance:
            now[0] += 2.0
            advance()
            advance(note="x")
    assert capsys.readouterr().err == "three: 1 of 2 (2 s left)\n"


def test_no_bars_where_there_is_no_terminal() -> None:
    assert isinstance(make_progress(), PlainProgress)
    with TerminalProgress().stage("scan", 3) as advance:
        advance(2, "conv1")


def test_what_may_go_is_said_in_the_recipe(capsys, monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    wishes = [
        "branches=true", "fallback=graph", "multiple_of={'*': 2}", "minimum=2", "inexact=[expert, head]",
        "ignore=[blocks.1]", "split_stacks=true",
    ]  # fmt: skip
    sets = [part for wish in wishes for part in ("--set", wish)]
    assert code("inspect", recipe, *sets) == 0
    seen = capsys.readouterr().out
    assert "blocks.0.bn2:branch" in seen and "blocks.1" not in seen
    assert code("inspect", recipe) == 0
    assert "branch" not in capsys.readouterr().out

    given: dict[str, object] = {}
    monkeypatch.setattr(job, "prune", lambda *args, **how: given.update(how))
    loaded = load_recipe(recipe, wishes)
    job.run_recipe(loaded, load_data(loaded.data, ()), (), recipe.parent)
    names = ("branches", "fallback", "multiple_of", "minimum", "inexact", "ignore", "split_stacks")
    assert [given[name] for name in names] == [True, "graph", {"*": 2}, 2, ("expert", "head"), ("blocks.1",), True]


def test_where_and_how_far_is_measured_is_said_in_the_recipe(monkeypatch: pytest.MonkeyPatch, recipe: Path) -> None:
    def given(*wishes: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        monkeypatch.setattr(job, "prune", lambda *args, **how: found.update(how))
        loaded = load_recipe(recipe, wishes)
        job.run_recipe(loaded, load_data(loaded.data, ()), (), recipe.parent)
        return found

    plain = given()
    assert (plain["repeats"], plain["standard_errors"]) == (1, 1.0)
    rule = given("repeats=4", "standard_errors=1.645")
    assert (rule["repeats"], rule["standard_errors"]) == (4, 1.645)
    assert plain["executor"] == sc.SerialExecutor() and plain["racing"] is None and plain["spend"] is None
    more = given("workers=3", "racing={stage: 100, least: 50, bisect: true}", "spend=sequence", "confidence=0.9")
    assert more["executor"] == sc.ProcessExecutor(3) and more["spend"] == "sequence" and more["confidence"] == 0.9
    assert more["racing"] == sc.Racing((more["tolerance"],), stage=100, least=50, bisect=True)
    far = given("workers=3", "ray={address: auto, gpus: 0.5}", "racing.boundaries=[0.1]", "cache_bytes=7")
    assert far["executor"] == sc.RayExecutor(3, "auto", gpus=0.5, cache_bytes=7)
    assert far["racing"] == sc.Racing((0.1,))
    assert given("cache_bytes=7")["executor"] == sc.SerialExecutor(7)
    assert given("workers=2", "cache_bytes=7")["executor"] == sc.ProcessExecutor(2, cache_bytes=7)


def test_a_scan_by_two_processes_prints_what_one_does(capsys, recipe: Path, tmp_path: Path) -> None:
    assert code("scan", recipe, "--out", tmp_path / "one", "--threads", 1) == 0
    shown = capsys.readouterr().out
    assert code("scan", recipe, "--out", tmp_path / "two", "--threads", 1, "--workers", 2) == 0
    assert capsys.readouterr().out == shown.replace("one/curves.svg", "two/curves.svg")


def test_certify_states_its_assumptions_and_spends_the_test_data_once(capsys, recipe: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = digits_cnn(4).eval()
    program = sc.trace(dense, (torch.zeros(2, 1, 8, 8),))
    groups = sc.find_groups(program)
    scores = sc.score(groups, sc.collect(dense, groups, [], needs=sc.Magnitude().needs), sc.Magnitude())
    for sparsity in (0.25, 0.5):
        chosen = sc.plan(groups, scores, sparsity=sparsity)
        sc.save(sc.cut(dense, chosen, program=program), tmp_path / f"{sparsity}", original=dense, plan=chosen)
    one = ("certify", recipe, "--pruned", tmp_path / "0.25", "--out", tmp_path / "run")
    refused = code(*one)
    first = capsys.readouterr().out
    assert "the tolerance of 0.02" in first and "Assumed: The test samples are exchangeable" in first
    assert refused == (main.NOT_CERTIFIED if "could NOT be certified" in first else 0)
    assert code(*one) == refused and capsys.readouterr().out == first
    assert code("certify", recipe, "--pruned", tmp_path / "0.5", "--out", tmp_path / "run") == 6
    assert "used before" in capsys.readouterr().err
    both = ("--pruned", tmp_path / "0.25", "--pruned", tmp_path / "0.5", "--tolerance", 0.9)
    assert code("certify", recipe, *both, "--out", tmp_path / "two") == 0
    assert "Candidate 2 is the last that passed (all passed)" in capsys.readouterr().out
    strict = ("--pruned", tmp_path / "0.25", "--pruned", tmp_path / "0.5", "--tolerance", 0.001)
    assert code("certify", recipe, *strict, "--out", tmp_path / "three") == main.NOT_CERTIFIED
    assert code("certify", recipe, *strict[:2], *strict[4:], "--out", tmp_path / "four") == main.NOT_CERTIFIED
