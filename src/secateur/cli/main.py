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
    "reach; 6 files; 130 stopped by Ctrl-C (run the same command again to resume)."
)
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
Threads = Annotated[int, typer.Option(help="Threads of torch; 0 = its own choice.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for the reports.")] = Path("runs/demo"), threads: Threads = 1
) -> None:
    """Train two small networks on bundled digits, prune both, and write two reports (about a minute)."""
    _set_threads(threads)
    from secateur.cli.demo import run_demo
    from secateur.cli.progress import make_progress

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
    loaded, splits = _load(recipe, set_, allow_import)
    from secateur.cli.inspect import inspection

    typer.echo(inspection(loaded, splits, tuple(allow_import or ())))


@app.command(epilog=EPILOG)
def scan(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Run directory; a second scan in it resumes.")] = Path("runs/scan"),
    set_: Overrides = None,
    allow_import: Allowed = None,
    threads: Threads = 0,
) -> None:
    """Measure the sensitivity of every group, and print the curves."""
    _set_threads(threads)
    loaded, splits = _load(recipe, set_, allow_import)
    from secateur.cli.inspect import measured_scan

    typer.echo(measured_scan(loaded, splits, tuple(allow_import or ()), out))


@app.command(epilog=EPILOG)
def prune(
    recipe: RecipePath,
    out: Annotated[Path, typer.Option(help="Run directory: reports, the pruned model, and what resuming needs.")],
    set_: Overrides = None,
    allow_import: Allowed = None,
    threads: Threads = 0,
) -> None:
    """Run the whole job of a recipe. Stopped at any moment, the same command goes on where it was."""
    _set_threads(threads)
    loaded, splits = _load(recipe, set_, allow_import)
    from secateur.cli.job import run_recipe

    result = run_recipe(loaded, splits, tuple(allow_import or ()), out)
    result.save(out / "pruned")
    report = result.report(out / "report.html")
    _show(result.report_data)
    typer.echo(f"\nReport: {report.resolve()}\nModel:  {(out / 'pruned').resolve()}")


@app.command(epilog=EPILOG)
def report(run: Annotated[Path, typer.Argument(help="A run directory, or its report.json.")]) -> None:
    """Render the report of a run again, and print its tables."""
    from pydantic import ValidationError

    from secateur.report.html import render_html
    from secateur.report.schema import ReportData
    from secateur.storage.atomic import write_text

    source = run / "report.json" if run.is_dir() else run
    try:
        data = ReportData.model_validate_json(source.read_text())
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
    """Entry point: errors become one line and an exit code, never a traceback."""
    try:
        code = app(arguments, standalone_mode=False)
    except errors.SecateurError as error:
        _fail(str(error), next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1))
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; run the same command again to resume", 130)
    except Exception as error:
        if not _is_usage(error):
            raise
        _fail(error.format_message(), 2)  # type: ignore[attr-defined]
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _is_usage(error: Exception) -> bool:
    return hasattr(error, "exit_code") and hasattr(error, "format_message")


def _fail(message: str, code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


def _load(recipe: Path, overrides: list[str] | None, allowed: list[str] | None) -> "tuple[Recipe, Splits]":
    from secateur.cli.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from secateur.cli.loaders import load_data

    return loaded, load_data(loaded.data, tuple(allowed or ()))


def _set_threads(threads: int) -> None:
    if threads > 0:
        import torch

        torch.set_num_threads(threads)


def _show(data: "ReportData") -> None:
    from secateur.report.tables import control_table, summary_table, to_text

    typer.echo(to_text(summary_table(data)))
    if len(data.controls) > 1:
        typer.echo(to_text(control_table(data)))
    if data.certificate is not None:
        typer.echo(to_text(data.certificate.sentence).rstrip())
    for warning in data.warnings:
        typer.echo(to_text(f"note: {warning}").rstrip())
