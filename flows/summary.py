"""What a run shows a person: the metrics and what became of each stage, as rows and as Markdown."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flows.report import RunReport
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.settings.sequence_model import Variant
from tasks.dag import VARIANT_TITLES


def pivoted_metrics(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Test metrics of evaluations: a row per method and seen policy, a column per metric; ``keep`` comes first."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in entries:
        if entry["split"] == "test":
            names = {"method": entry["method"], "seen": entry["seen"]}
            row = rows.setdefault((entry["method"], entry["seen"]), names)
            row[f"{entry['metric']}@{entry['k']}"] = entry["value"]
    return sorted(rows.values(), key=lambda row: SEEN_POLICIES.index(row["seen"]))


def metrics_rows(report: RunReport) -> list[dict[str, Any]]:
    """Test metrics of a run; recommenders come first, then the rows that learn nothing."""
    return pivoted_metrics(
        entry | {"method": _method_title(entry)}
        for slot, result in report.results.items()
        if slot.startswith("evaluation.")
        for entry in result.info["metrics"]
    )


def _method_title(entry: Mapping[str, Any]) -> str:
    method, variant = entry["method"], entry["variant"]
    return f"{method} {VARIANT_TITLES[Variant(variant)]}" if variant in set(Variant) else method


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
    trained = [result for slot, result in report.results.items() if slot.startswith("recommender.")]
    beside = "; the texts stand beside its states" if any(result.info.get("item_text") for result in trained) else ""
    return f"{model}{beside}; its category against the item's cluster: {agreement}"


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
        *markdown_table(columns, rows, _cell),
        "",
        *markdown_table(["stage", "outcome", "seconds", "MiB", "artefact", "reason"], stage_rows(report), _cell),
    ]
    return "\n".join(lines)


def _cell(column: str, value: Any) -> str:
    return f"{value:.4f}" if "@" in column and value != "" else str(value).replace("|", "\\|")


def markdown_table(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], cell: Callable[[str, Any], str]
) -> list[str]:
    """Rows as lines of a Markdown table.

    Args:
        columns: The columns that are shown.
        rows: Values by column; one that is not there is taken for the empty text.
        cell: Text of a value, given its column.
    """
    body = ["| " + " | ".join(cell(c, row.get(c, "")) for c in columns) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *body]
