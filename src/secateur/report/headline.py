"""The outcome in one sentence."""

from secateur.report.schema import ReportData


def headline(data: ReportData) -> str:
    """What became smaller, what became faster, and what it cost."""
    parts = []
    for row in data.costs:
        if row.name == "MACs" and row.after < row.before:
            parts.append(f"{row.ratio:.1f}× fewer multiply-adds")
        if row.name == "latency":
            parts.append(row.verdict.replace("x ", "× ") if row.verdict and "verdict" not in row.verdict else "")
    small = ", ".join(p for p in parts if p) or "Nothing was removed"
    certificate = data.certificate
    if certificate is None:
        return f"{small}."
    bound = f"{100 * certificate.bound:.2f} points" if certificate.bound <= 1 else f"{certificate.bound:.3g}"
    return f"{small}; with {certificate.confidence:.0%} confidence the {certificate.metric} drops by at most {bound}."
