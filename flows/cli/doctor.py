"""``p2rec doctor``."""

import json
import sys
from datetime import timedelta
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from flows.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from flows.cli.tables import print_table
from p2rec_core.errors import StoreUnsound
from storage.artefacts import Store
from storage.doctor import HealthReport, examine
from storage.garbage import DEFAULT_GRACE
from tasks.health import further_findings

_SHOWN = 100


def doctor(
    *,
    repair: Annotated[
        bool, Parameter(name="--repair", negative="", help="Set damaged files aside, mend pointers, remove leftovers.")
    ] = False,
    grace: Annotated[
        timedelta, Parameter(name="--grace", help="Leftovers that are younger stay, e.g. 7d or 12h.")
    ] = DEFAULT_GRACE,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of the store: artefacts, snapshots, pointers, locks, checkpoints, records, leftovers.

    The exit status is 7 as long as something cannot be used; leftovers, which only take room, do not count.

    Examples:
        p2rec doctor
        p2rec doctor --repair
        p2rec doctor --json
    """
    opened = Store.open(store, create=False)
    report = examine(opened, repair=repair, grace=grace, further=lambda: further_findings(opened))
    if as_json:
        sys.stdout.write(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    else:
        _print(report)
    if report.harm:
        kinds = ", ".join(sorted({finding.kind for finding in report.harm}))
        again = "Do what is said beside each" if repair else "Mend what can be mended with `p2rec doctor --repair`"
        raise StoreUnsound(
            f"{len(report.harm)} findings in {opened.root} need something done ({kinds}).",
            remedy=f"{again}, then run again what is missing.",
        )


def _print(report: HealthReport) -> None:
    console = Console()
    if report.findings:
        table = Table("what", "file", "problem", "what to do", title="Findings", title_justify="left", show_lines=True)
        for finding in sorted(report.findings, key=lambda finding: (not finding.harmful, bool(finding.mended)))[
            :_SHOWN
        ]:
            done = f"done: {finding.mended}" if finding.mended else finding.remedy
            table.add_row(finding.kind, finding.name, finding.problem, done)
        print_table(table)
        if len(report.findings) > _SHOWN:
            console.print(f"… and {len(report.findings) - _SHOWN:,} more; `--json` lists them all.", highlight=False)
    console.print(
        f"{report.n_artefacts:,} artefacts ({report.n_bytes / 2**20:,.1f} MiB) and {report.n_snapshots:,} snapshots "
        f"checked in {report.wall_s:.1f} s: {len(report.harm):,} need something done, "
        f"{len(report.findings) - len(report.harm):,} are mended or harmless.",
        highlight=False,
        soft_wrap=True,
    )
