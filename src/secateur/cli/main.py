"""The command line. Torch is imported when a command needs it, so that --help is quick."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur import errors

if TYPE_CHECKING:
    from secateur.cli.loaders import Splits
    from secateur.cli.recipe import Recipe
    from secateur.report.schema import ReportData

EPILOG = (
    "Exit codes: 0 done; 2 wrong usage or recipe; 3 data or metric; 4 model, trace or surgery; 5 budget out of "
    "reach; 6 files; 7 not certified (certify only); 8 workers lost; 1 a defect of secateur; 130 stopped by Ctrl-C "
    "(run the same command again to resume)."
)
NOT_CERTIFIED = 7
STOPPED = 130
EXIT_CODES: tuple[tuple[type[errors.SecateurError], int], ...] = (
    (errors.RecipeError, 2),
    (errors.ArgumentError, 2),
    (errors.MissingExtraError, 2),
    (errors.DataError, 3),
    (errors.MetricError, 3),
    (errors.NumericalError, 3),
    (errors.TraceError, 4),
    (errors.SurgeryError, 4),
    (errors.PlanError, 4),
    (errors.BudgetError, 5),
    (errors.StoreError, 6),
    (errors.SavedModelError, 6),
    (errors.WorkerError, 8),
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    help=(
        "Make a trained PyTorch network smaller and faster: secateur measures what the output is least sensitive "
        "to, removes it, and certifies what it cost.\n\nStart with: secateur demo"
    ),
)

RecipePath = Annotated[Path, typer.Argument(help="A recipe: YAML, see the recipes/ folder for examples.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Replace an entry of the recipe: --set data.batch_size=128.")
]
Allowed = Annotated[
    list[str] | None,
    typer.Option("--allow-import", help="Module that the recipe may import; importing runs its code."),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Processes, or Ray actors, that measure sensitivity; 0 = the recipe's.")
]
Threads = Annotated[int, typer.Option(min=0, help="Threads of torch; 0 = the recipe's, or torch's own choice.")]


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show Python's traceback of an error.")] = False,
) -> None:
    """Options of all commands; `run` reads them before typer does, so that they may stand anywhere."""


@app.command(epilog=EPILOG)
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the reports.")] = Path("runs/demo"), threads: Threads = 1
) -> None:
    """Train two small networks on bundled digits, prune both, and write two reports (about a minute)."""
    _set_threads(threads)
    from secateur.cli.demo import run_demo
    from secateur.progress_bars import make_progress

    reports = []
    for exhibit, result, report in run_demo(out, make_progress()):
        typer.echo(f"\n{exhibit.name}")
        _show(result.report_data)
        reports.append(report)
    typer.echo("\nReports, to open in a browser:")
    for report in reports:
        typer.echo(f"  {report.resolve()}")


@app.command(epilog=EPILOG)
def inspect(recipe: RecipePath, set_: Overrides = None, allow_import: Allowed = None) -> None:
    """Show what can be cut, and why the rest cannot."""
    loaded, splits, allowed = _load(recipe, set_, allow_import)
    from secateur.cli.inspect import inspection

    typer.echo(inspection(loaded, splits, allowed))


@app.command(epilog=EPILOG)
def scan(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Run directory; a second scan in it resumes.")] = Path("runs/scan"),
    set_: Overrides = None,
    allow_import: Allowed = None,
    threads: Threads = 0,
    workers: Workers = 0,
) -> None:
    """Measure the sensitivity of every group, and print the curves."""
    loaded, splits, allowed = _load(recipe, _with_workers(set_, workers), allow_import, threads)
    from secateur.cli.inspect import measured_scan

    typer.echo(measured_scan(loaded, splits, allowed, out))


@app.command(epilog=EPILOG)
def front(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Run directory; a second run in it resumes the scan.")] = Path("runs/front"),
    set_: Overrides = None,
    allow_import: Allowed = None,
    threads: Threads = 0,
) -> None:
    """Measure damage against cost for every objective of the recipe, to choose a budget from."""
    loaded, splits, allowed = _load(recipe, set_, allow_import, threads)
    from secateur.cli.front import measured_points

    typer.echo(measured_points(loaded, splits, allowed, out))
    typer.echo(f"\nPoints: {(out / 'front.json').resolve()}")


@app.command(epilog=EPILOG)
def prune(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Run directory: reports, the pruned model, and what resuming needs.")],
    set_: Overrides = None,
    allow_import: Allowed = None,
    threads: Threads = 0,
    workers: Workers = 0,
) -> None:
    """Run the whole job of a recipe. Stopped at any moment, the same command goes on where it was."""
    loaded, splits, allowed = _load(recipe, _with_workers(set_, workers), allow_import, threads)
    from secateur.cli.job import run_recipe

    result = run_recipe(loaded, splits, allowed, out)
    result.save(out / "pruned")
    report = result.report(out / "report.html")
    _show(result.report_data)
    typer.echo(f"\nReport: {report.resolve()}\nModel:  {(out / 'pruned').resolve()}")


@app.command(epilog=EPILOG)
def sparsify(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Directory for the sparse model; what is there is replaced.")],
    set_: Overrides = None,
    allow_import: Allowed = None,
    threads: Threads = 0,
) -> None:
    """Make single weights zero without training, in the shape that the network has; measure, and save it."""
    loaded, splits, allowed = _load(recipe, set_, allow_import, threads)
    from secateur.cli.sparsify import sparsified

    typer.echo(sparsified(loaded, splits, allowed, out))
    typer.echo(f"\nModel: {out.resolve()}")


@app.command(epilog=EPILOG)
def certify(
    recipe: RecipePath,
    pruned: Annotated[
        list[Path],
        typer.Option(
            help="Directory of a saved pruned model; several, mild to aggressive: the last that passes ships."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run directory, where the use of the test data is written down.")],
    tolerance: Annotated[
        float, typer.Option(help="Damage to rule out, in units of the metric; 0 = the recipe's.")
    ] = 0.0,
    confidence: Annotated[float, typer.Option(help="Of all statements made on these test data.")] = 0.95,
    spend: Annotated[float, typer.Option(help="Part of 1 - confidence that this test spends; 0 = all.")] = 0.0,
    set_: Overrides = None,
    allow_import: Allowed = None,
    threads: Threads = 0,
) -> None:
    """Certify on the recipe's test data what saved models lose against the dense one; exit code 7 if that fails."""
    loaded, splits, allowed = _load(recipe, set_, allow_import, threads)
    from secateur.cli.certify import certified

    wanted = tolerance or loaded.tolerance
    outcome = certified(loaded, splits, allowed, pruned, out, wanted, confidence=confidence, spend=spend or None)
    typer.echo(str(outcome))
    if not outcome.certified:
        raise typer.Exit(NOT_CERTIFIED)


@app.command(epilog=EPILOG)
def report(run: Annotated[Path, typer.Argument(help="A run directory, or its report.json.")]) -> None:
    """Render the report of a run again, and print its tables."""
    from pydantic import ValidationError

    from secateur.report.html import render_html
    from secateur.report.schema import ReportData
    from secateur.storage.atomic import write_text

    source = run / "report.json" if run.is_dir() else run
    try:
        data = ReportData.model_validate_json(source.read_bytes())
    except OSError as error:
        raise errors.StoreError(
            f"cannot read {source}: {error.strerror}; name a run directory that prune made"
        ) from error
    except ValidationError as error:
        raise errors.StoreError(f"{source} is not a report of this release: {error.errors()[0]['msg']}") from error
    target = source.with_suffix(".html")
    write_text(target, render_html(data))
    _show(data)
    typer.echo(f"\nReport: {target.resolve()}")


def run(arguments: list[str] | None = None) -> None:
    """Entry point: errors become one line and an exit code; a traceback only with --traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = app([a for a in given if a != "--traceback"], standalone_mode=False)
        if code == STOPPED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        if "--traceback" in given:
            sys.excepthook(type(error), error, error.__traceback__)
        message, code = _verdict(error)
        typer.echo(f"error: {message}", err=True)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)


def _verdict(error: BaseException) -> tuple[str, int]:
    """What to say, and the exit code."""
    match error:
        case errors.SecateurError():
            return str(error), next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
        case KeyboardInterrupt() | typer.Abort():
            return "stopped; run the same command again to resume", STOPPED
        case OSError():
            return f"{error}; check the path, its permissions and the space on its disk", 6
        case _ if hasattr(error, "exit_code") and hasattr(error, "format_message"):
            return error.format_message(), 2
        case _:
            hint = "run again with --traceback and report what it shows"
            return f"unexpected {type(error).__name__}: {error}; {hint}", 1


def _load(
    recipe: Path, overrides: list[str] | None, allow_import: list[str] | None, threads: int = 0
) -> "tuple[Recipe, Splits, tuple[str, ...]]":
    """The recipe, its data, and the modules that it may import."""
    from secateur.cli.imports import named_modules
    from secateur.cli.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    allowed = (*(allow_import or ()), *named_modules(overrides or ()))
    _set_threads(threads or loaded.threads)
    from secateur.cli.loaders import load_data

    return loaded, load_data(loaded.data, allowed), allowed


def _with_workers(overrides: list[str] | None, workers: int) -> list[str]:
    return [*(overrides or ()), *([f"workers={workers}"] if workers else [])]


def _set_threads(threads: int) -> None:
    if threads > 0:
        import torch

        torch.set_num_threads(threads)


def _show(data: "ReportData") -> None:
    from secateur.report.tables import outcome

    typer.echo(outcome(data))
