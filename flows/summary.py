"""What a run shows a person: the metrics and what became of each stage, as rows and as Markdown."""

from typing import Any

from flows.report import RunReport
from p2rec_core.settings.sequence_model import Variant
from tasks.dag import VARIANT_TITLES


def metrics_rows(report: RunReport, split: str = "test") -> list[dict[str, Any]]:
    """One row per method, variant and seen policy, with a column per metric.

    Recommenders come first, then the rows that learn nothing.
    """
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for slot, result in report.results.items():
        if not slot.startswith("evaluation."):
            continue
        for entry in result.info["metrics"]:
            if entry["split"] != split:
                continue
            method = entry["method"]
            if entry["variant"] in set(Variant):
                method = f"{method} {VARIANT_TITLES[Variant(entry['variant'])]}"
            row = rows.setdefault((method, entry["variant"], entry["seen"]), {"method": method, "seen": entry["seen"]})
            row[f"{entry['metric']}@{entry['k']}"] = entry["value"]
    order = {"keep": 0, "mask": 1}
    return sorted(rows.values(), key=lambda row: order[row["seen"]])


def stage_rows(report: RunReport) -> list[dict[str, Any]]:
    """One row per slot: outcome, reason, seconds, size and artefact."""
    return [
        {
            "stage": slot,
            "outcome": str(result.outcome),
            "seconds": round(result.wall_s, 2),
            "MiB": round(result.n_bytes / 2**20, 2),
            "artefact": f"{result.ref.stage}/{result.ref.key}",
            "reason": result.reason,
        }
        for slot, result in report.results.items()
    ]


def label(report: RunReport) -> str:
    """The dataset's name, with the word synthetic where its data was drawn by a program."""
    return f"{report.dataset} (synthetic)" if report.synthetic else report.dataset


def language_model_note(report: RunReport) -> str:
    """Which language model the knowledge comes from; empty where none was used."""
    if "knowledge" not in report.results:
        return ""
    info = report.results["knowledge"].info
    agreement = ", ".join(f"{case} {share:.2f}" for case, share in info["category_agreement"].items())
    read = "embeddings and texts" if info["item_text"] else "embeddings alone, no texts"
    model = f"language model: {info['language_model']}, reading the items' {read}"
    return f"{model}; its category against the item's cluster: {agreement}"


def cold_note(report: RunReport) -> str:
    """How many test targets no training part holds."""
    for slot, result in report.results.items():
        if slot.startswith("evaluation."):
            info = result.info
            return f"{info['n_cold_test_targets']} of {info['n_test_users']} test targets occur in no training part"
    return ""


def summary_markdown(report: RunReport) -> str:
    """The whole run as Markdown."""
    rows = metrics_rows(report)
    columns = ["method", "seen", *(c for c in rows[0] if c not in ("method", "seen"))] if rows else []
    cached = sum(result.outcome == "cached" for result in report.results.values())
    lines = [
        f"# P2Rec on {label(report)}",
        "",
        f"{cached} of {len(report.results)} stages cached, {report.wall_s:.1f} s, "
        f"snapshot {report.snapshot if report.snapshot is not None else 'unchanged'}. "
        f"Test split, full ranking over all items. {cold_note(report)}.",
        "",
        language_model_note(report),
        "",
        *_markdown_table(columns, rows),
        "",
        *_markdown_table(["stage", "outcome", "seconds", "MiB", "artefact", "reason"], stage_rows(report)),
    ]
    return "\n".join(lines)


def _markdown_table(columns: list[str], rows: list[dict[str, Any]]) -> list[str]:
    def cell(column: str, value: Any) -> str:
        return f"{value:.4f}" if "@" in column and value != "" else str(value).replace("|", "\\|")

    body = ["| " + " | ".join(cell(c, row.get(c, "")) for c in columns) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *body]
