"""What a run read and made, from the manifests of its artefacts."""

from typing import Any

from flows.report import RunReport
from storage.artefacts import Store

_N_DIGITS = 12
"""Digits of a sha256 that a person is shown."""


def lineage_rows(report: RunReport, store: Store) -> list[dict[str, Any]]:
    """One row per slot: the artefact, the files that it was computed from, and its own.

    Args:
        report: The run.
        store: Where its artefacts are.
    """
    rows = []
    for slot, result in report.results.items():
        artefact = store.load(result.ref)
        reads = {f"{read.stage}/{read.key}/{read.file}" for read in artefact.manifest.inputs.values()}
        makes = [f"{entry.path} ({entry.sha256[:_N_DIGITS]})" for _, entry in sorted(artefact.files.items())]
        rows.append(
            {
                "stage": slot,
                "artefact": f"{result.ref.stage}/{result.ref.key}",
                "reads": ", ".join(sorted(reads)),
                "makes": ", ".join(makes),
                "made (UTC)": artefact.manifest.created_utc,
                "code": artefact.manifest.fingerprint[:_N_DIGITS],
            }
        )
    return rows
