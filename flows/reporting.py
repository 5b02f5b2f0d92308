"""The report of an experiment as a flow: the page on disk, and its figures and tables in Prefect."""

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact

from flows.forms import RecordedName
from p2rec_core.analysis.results import ExperimentResults
from storage.artefacts import DEFAULT_STORE, Store
from tasks.report import report_figures, report_markdown, write_report
from tasks.results import load_results


@flow(name="report", flow_run_name="{name}", persist_result=False)
def report(name: RecordedName, out: Path | None = None, store: Path = DEFAULT_STORE) -> dict[str, str]:
    """Make the report of an experiment from what is in the store; nothing is computed.

    Args:
        name: An experiment that was run.
        out: Directory of the report; left empty, ``report-NAME`` beside the store.
        store: Directory of the artefact store.

    Returns:
        The page, and the command that computes what is missing of the experiment; empty where nothing is.

    Raises:
        StoreError: The experiment was never run in this store.
    """
    opened = Store.open(store, create=False)
    results = load_results(opened, name)
    paths = write_report(results, (out or opened.root.parent / f"report-{name}").absolute())
    show_comparison(results)
    create_link_artifact(
        paths.page.as_uri(), link_text=str(paths.page), key="report", description=f"{name}: the page of its report"
    )
    return {"page": str(paths.page), "missing": results.command if results.missing else ""}


def show_comparison(results: ExperimentResults) -> None:
    """Leave an experiment's comparisons and figures as artifacts of the present flow run.

    Raises:
        P2RecError: There is not enough of it to compare.
    """
    name = results.name
    text, figures = report_markdown(results), report_figures(results)
    create_markdown_artifact(text, key="experiment-report", description=f"{name}: comparisons")
    for figure_name, figure in figures.items():
        create_image_artifact(
            figure.data_uri,
            key=f"figure-{figure_name}".replace("_", "-"),
            description=f"{name}: {figure.title}. {figure.caption}",
        )
