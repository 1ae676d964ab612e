"""What `prune` hands back."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from secateur.allocation.certificate import Certificate
from secateur.allocation.front import Front
from secateur.allocation.selection import Selection
from secateur.pipeline.latency import Timed
from secateur.pipeline.task import Damage
from secateur.report.html import render_html
from secateur.report.schema import ReportData
from secateur.report.tables import outcome
from secateur.storage.atomic import write_text
from secateur.storage.saved_model import save_model
from secateur.surgery.plan import Plan
from secateur.types import Curves


@dataclass(frozen=True, eq=False)
class Result:
    """A pruned model, what it cost, and why it looks as it does; printed, it says the main of that.

    Attributes:
        model: the smaller model, an instance of the user's own class, in eval mode; under `fallback="graph"` it may
            be a graph.
        original: the dense model, untouched.
        plan: the units that every group keeps.
        damage: mean paired damage on the validation data.
        certificate: what holds on fresh data; None without test data.
        curves: damage against sparsity of every group of the dense model.
        report_data: everything that the report shows.
        timed: latency, predicted and measured, and whether it is within the budget; None where none was bounded.
        front: measured points of cost against damage, as cut and nothing else; None if it was not asked for.
        selection: criterion and objective, chosen among several; None if there was one of each.
    """

    model: nn.Module
    original: nn.Module
    plan: Plan
    damage: Damage
    certificate: Certificate | None
    curves: Curves
    report_data: ReportData
    timed: Timed | None = None
    front: Front | None = None
    selection: Selection | None = None

    def __str__(self) -> str:
        """What became smaller, what it cost beside the controls, and the certificate."""
        return outcome(self.report_data)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file, and `report.json` beside it."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, render_html(self.report_data))
        write_text(target.with_suffix(".json"), self.report_data.model_dump_json(indent=1))
        return target

    def save(self, directory: str | Path) -> Path:
        """Write weights (safetensors) and a manifest with the plan; `load(factory, directory)` reads them."""
        save_model(self.model, Path(directory), original=self.original, plan=self.plan)
        return Path(directory)
