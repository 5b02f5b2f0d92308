"""A person at the interface: finds a deployment, starts a run with a changed parameter, and reads its metrics.

Needs Debian's ``chromium`` and the package playwright (``requirements-interface.txt``). With
``P2REC_SCREENSHOTS=DIRECTORY`` it leaves pictures there.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.artefacts import Store
from storage.snapshots import read_snapshot
from tests.deployments.served import Served, until

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: requirements-interface.txt"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine: apt-get install chromium"),
]


@pytest.fixture
def page() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def picture(page: Any, name: str) -> None:
    directory = os.environ.get("P2REC_SCREENSHOTS")
    if directory:
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(directory) / f"{name}.png")


def field(page: Any, label: str) -> Any:
    return page.locator(f'xpath=//*[text()="{label}"]/following::*[self::input or self::textarea][1]')


def fill_small(page: Any) -> None:
    """Fill the form with settings of which the store has a run."""
    for label, value in {"Hidden Size": "16", "Inner Size": "32", "Max Epochs": "2", "Batch Positions": "4096"}.items():
        for place in (0, 1):  # the backbone's, and the recommender's
            every = page.locator(f'xpath=//*[text()="{label} (Optional)"]')
            every.nth(place).locator("xpath=following::input[1]").fill(value)
    field(page, "Name Or Path (Optional)").fill("random-llama-tiny")
    field(page, "N Components (Optional)").fill("8")


def submitted(served: Served, page: Any, name: str) -> Any:
    """Submit the form and wait for the run of that name to end."""
    page.get_by_role("button", name="Submit").click()

    def started() -> Any:
        return served.api("POST", "/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})

    [run] = until(started, seconds=60, what=f"the run {name}")
    return served.api.ended(run["id"], seconds=300)


def test_a_run_with_a_changed_parameter_through_the_form(served: Served, page: Any) -> None:
    address = f"http://127.0.0.1:{served.port}"
    page.goto(f"{address}/deployments")
    page.get_by_role("link", name="pipeline").first.wait_for()
    picture(page, "deployments")

    page.goto(f"{address}/deployments/deployment/{served.api.deployment('pipeline')['id']}/run")
    clusters = field(page, "N Clusters (Optional)")
    clusters.wait_for()
    picture(page, "form")
    field(page, "Run Name").fill("seven clusters")
    fill_small(page)
    clusters.fill("1")
    clusters.scroll_into_view_if_needed()
    page.get_by_role("button", name="Submit").click()
    page.get_by_text("1 is less than the minimum of 2").first.wait_for()
    picture(page, "refused")
    clusters.fill("7")
    page.get_by_role("button", name="Submit").click()

    def started() -> Any:
        every = served.api("POST", "/flow_runs/filter", {})
        return [run for run in every if run["parameters"].get("settings", {}).get("clusters") == {"n_clusters": 7}]

    [run] = until(started, seconds=60, what="the run")
    page.goto(f"{address}/runs/flow-run/{run['id']}")
    assert served.api.ended(run["id"], seconds=300)["state"]["name"] == "Completed"
    [made] = [manifest for manifest in served.manifest("clusters") if manifest["settings"]["n_clusters"] == 7]
    assert made["settings"]["finer"] == [60]  # the sample's own

    page.goto(f"{address}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for()
    picture(page, "run")
    artifacts = {artifact["key"]: artifact["id"] for artifact in served.api.artifacts(run["id"])}
    page.goto(f"{address}/artifacts/artifact/{artifacts['summary']}")
    page.get_by_text("sasrec +P2Rec").first.wait_for()
    picture(page, "summary")
    page.goto(f"{address}/artifacts/artifact/{artifacts['metrics']}")
    page.get_by_text("NDCG@10").first.wait_for()
    picture(page, "metrics")


@pytest.mark.parametrize(
    ("name", "toggled", "computed", "alone"),
    [
        ("as it is", [], set(), False),
        ("forced", ["force"], {"clusters"}, False),  # to the same content: what depends on it is cached
        ("alone", ["with_downstream"], set(), True),
        ("alone and forced", ["with_downstream", "force"], {"clusters"}, True),
    ],
)
def test_one_stage_is_run_anew_through_the_form(
    served: Served, page: Any, name: str, toggled: list[str], computed: set[str], alone: bool
) -> None:
    page.goto(f"http://127.0.0.1:{served.port}/deployments/deployment/{served.api.deployment('stage')['id']}/run")
    field(page, "N Clusters (Optional)").wait_for()
    field(page, "Run Name").fill(name)
    for switch in toggled:
        field(page, f"{switch} (Optional)").evaluate("it => it.click()")
    picture(page, "stage")
    fill_small(page)
    field(page, "N Init (Optional)").fill("1")
    store = Store.open(served.store)
    before = read_snapshot(store, "sample")
    run = submitted(served, page, name)
    assert run["state"]["name"] == "Completed"
    assert run["parameters"]["stage"] == "clusters"
    states = served.api.tasks(run["id"])
    assert {task for task, state in states.items() if state == "Computed"} == computed
    assert {task for task, state in states.items() if state == "Cached"} == states.keys() - computed
    assert (states.keys() == {"ingest", "backbone", "clusters"}) is alone
    after = read_snapshot(store, "sample")
    if alone:
        assert after == before
    else:
        assert store.load(after.entries["clusters"]).manifest.settings["n_clusters"] == 12  # the sample's own
    page.goto(f"http://127.0.0.1:{served.port}/runs/flow-run/{run['id']}")
    page.get_by_text("Completed").first.wait_for()
