"""The command line as a person uses it: a process of its own, its output, its exit status."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.settings import PREFECT_API_URL

from flows.prepare import prepared_slots, settings_note
from flows.report import RunReport
from flows.server import free_port
from p2rec_core.settings.pipeline import PipelineSettings, pipeline_settings
from storage.artefacts import Store
from storage.snapshots import list_snapshots

First = tuple[Path, RunReport]


def p2rec(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
    )


@pytest.fixture(scope="module")
def sets(request: pytest.FixtureRequest) -> list[str]:
    """The small settings as options."""
    from_conftest = request.getfixturevalue("small_assignments")
    return [part for assignment in from_conftest for part in ("--set", assignment)]


@pytest.fixture
def filled(first_run: First, tmp_path: Path) -> Path:
    return Path(shutil.copytree(first_run[0], tmp_path / "store"))


def tree(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}


def failed(call: "subprocess.CompletedProcess[str]", status: int, *said: str) -> None:
    """The command ended with this status and one clear message, without a traceback."""
    assert call.returncode == status, call.stderr
    assert "Traceback" not in call.stderr
    message = " ".join(call.stderr.split())
    for words in said:
        assert words in message, message


def test_help_starts_without_heavy_libraries() -> None:
    script = (
        "import sys\nfrom flows.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'prefect', 'transformers', 'duckdb', 'pyarrow', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    call = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert call.returncode == 0, call.stderr
    for command in ("run", "stage", "query", "show", "settings", "data"):
        assert f"│ {command} " in call.stdout


@pytest.mark.parametrize("command", [["run"], ["stage"], ["query"], ["show"], ["settings"], ["data", "import"]])
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    call = p2rec(*command, "--help")
    assert call.returncode == 0
    assert f"p2rec {' '.join(command)}" in call.stdout


def test_a_cached_run_answers_without_prefect_or_torch_and_changes_nothing(filled: Path, sets: list[str]) -> None:
    before = tree(filled)
    script = "import sys\nfrom flows.cli import app\napp(sys.argv[1:], result_action='return_value')\n" + (
        "heavy = {'torch', 'prefect', 'transformers'} & set(sys.modules)\nassert not heavy, heavy"
    )
    call = subprocess.run(
        [sys.executable, "-c", script, "run", "--store", str(filled), "--json", *sets],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PREFECT_HOME": str(filled / "none")},
    )
    assert call.returncode == 0, call.stderr
    report = json.loads(call.stdout)
    assert {result["outcome"] for result in report["results"].values()} == {"cached"}
    assert tree(filled) == before


def test_the_end_of_a_run_says_what_there_is(filled: Path, sets: list[str]) -> None:
    call = p2rec("run", "--store", filled, *sets, PREFECT_HOME=str(filled / "none"))
    assert call.returncode == 0, call.stderr
    for words in (
        "sample (synthetic)",
        "sasrec Base",
        "sasrec +CI",
        "sasrec +P2Rec",
        "popularity",
        "recency copy",
        "id + 1",
        "NDCG@10",
        "mask",
        "14 of 14 stages cached",
        str(filled),
        "p2rec query -d sample",
    ):
        assert words in call.stdout


def test_a_dry_run_says_what_would_be_computed_and_why(filled: Path, sets: list[str]) -> None:
    call = p2rec("run", "--store", filled, "--dry-run", *sets, "--set", "clusters.n_clusters=9")
    assert call.returncode == 0, call.stderr
    assert "changed: n_clusters 12 → 9" in call.stdout
    assert "waits for clusters" in call.stdout
    assert "6 of 14 slots are cached" in call.stdout


def test_a_run_may_leave_the_current_snapshot_alone_and_else_says_how_to_go_back(filled: Path, sets: list[str]) -> None:
    base = ("run", "--store", filled, *sets, "--set", 'variants=["base"]')
    tried = p2rec(*base, "--no-publish", PREFECT_HOME=str(filled / "none"))
    assert tried.returncode == 0, tried.stderr
    assert "sasrec Base" in tried.stdout
    assert "The current snapshot was left as it was; what was computed is kept for later runs." in tried.stdout
    assert list_snapshots(Store.open(filled), "sample")[-1].number == 1
    published = p2rec(*base, PREFECT_HOME=str(filled / "none"))
    assert published.returncode == 0, published.stderr
    back = f"p2rec promote 1 -d sample --store {filled}"
    assert f"It is now the current one (before: 1); back with `{back}`." in published.stdout
    [query] = [line.strip() for line in published.stdout.splitlines() if line.startswith("  p2rec query ")]
    answer = p2rec(*shlex.split(query)[1:])
    assert answer.returncode == 0, answer.stderr
    assert "sasrec\tbase\tkeep" in answer.stdout
    assert p2rec(*shlex.split(back)[1:]).returncode == 0
    again = p2rec("run", "--store", filled, *sets, "--json", PREFECT_HOME=str(filled / "none"))
    report = json.loads(again.stdout)
    assert (report["snapshot"], report["before"]) == (1, None)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--dry-run"],
        ["stage", "clusters", "--dry-run"],
        ["experiment", "show", "sample"],
        ["experiment", "run", "sample", "--dry-run"],
    ],
    ids=" ".join,
)
def test_who_only_asks_makes_no_store(tmp_path: Path, words: list[str]) -> None:
    call = p2rec(*words, "--store", tmp_path / "typo")
    assert call.returncode == 0, call.stderr
    assert f"there is no store in {tmp_path / 'typo'}; a run makes it" in " ".join(call.stderr.split())
    assert "0 of" in call.stdout
    failed(p2rec("data", "fetch", "-d", "nowhere", "--store", tmp_path / "typo"), 3, "There is no dataset 'nowhere'")
    assert not list(tmp_path.iterdir())


def test_a_dry_run_finds_an_artefact_that_lacks_a_file(filled: Path, sets: list[str]) -> None:
    next((filled / "artefacts" / "clusters").glob("*/centroids.parquet")).unlink()
    call = p2rec("run", "--store", filled, "--dry-run", "--json", *sets)
    assert call.returncode == 0, call.stderr
    slots = {row["slot"]: row for row in json.loads(call.stdout)}
    assert not slots["clusters"]["cached"]
    assert "it is damaged" in slots["clusters"]["reason"]
    assert "centroids" in slots["clusters"]["reason"]


def test_a_run_without_a_configuration_says_what_is_not_as_in_the_last_one(
    filled: Path, small_settings: PipelineSettings
) -> None:
    store = Store.open(filled)
    settings = pipeline_settings(dataset="sample", assignments=["clusters.n_clusters=5", "runtime.threads=1"])
    slots, _ = prepared_slots("sample", settings, store)
    note = settings_note(slots, store, "sample", ["clusters.n_clusters=5"])
    assert note is not None
    assert note.startswith("other settings than snapshot 1: backbone.encoder.hidden_size 16 → 48; ")
    assert "n_clusters" not in note
    assert "clusters.n_clusters 12 → 5" in (settings_note(slots, store, "sample") or "")
    same, _ = prepared_slots("sample", small_settings, store)
    assert settings_note(same, store, "sample") is None
    assert settings_note(slots, store, "another") is None


def test_the_configuration_of_a_snapshot_computes_nothing(filled: Path, tmp_path: Path) -> None:
    printed = p2rec("settings", "--store", filled, "--snapshot", "current", "--toml")
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("# What snapshot 1 of sample was computed with.\n")
    config = tmp_path / "sample.toml"
    config.write_text(printed.stdout)
    call = p2rec("run", "--dry-run", "--json", "--store", filled, "--config", config)
    assert call.returncode == 0, call.stderr
    assert all(row["cached"] for row in json.loads(call.stdout))
    rows = json.loads(p2rec("settings", "clusters", "--store", filled, "--snapshot", "1", "--json").stdout)
    assert {row["setting"]: row["value"] for row in rows}["clusters.n_clusters"] == 12


def test_what_a_snapshots_settings_cannot_be_asked_with(filled: Path, sets: list[str]) -> None:
    asked = ("settings", "--store", filled, "--snapshot", "1")
    failed(p2rec(*asked, *sets), 2, "Of a snapshot --set would change nothing.")
    failed(p2rec(*asked, "--toml", "--json"), 2, "--toml and --json exclude each other.")
    failed(p2rec("settings", "--store", filled, "--snapshot", "7"), 4, "There is no snapshot 7 of")


def test_a_plan_for_a_program(filled: Path, sets: list[str]) -> None:
    call = p2rec("show", "--plan", "--json", "--store", filled, *sets, "--set", "clusters.n_clusters=9")
    assert call.returncode == 0, call.stderr
    slots = {row["slot"]: row["cached"] for row in json.loads(call.stdout)}
    assert slots["backbone"]
    assert not slots["clusters"]


@pytest.mark.parametrize(
    ("sql", "parameters", "n_rows"),
    [
        (
            "SELECT b.item_id, array_cosine_similarity(a.knowledge, b.knowledge) AS similarity FROM item_knowledge a, "
            "item_knowledge b WHERE a.item_id = ? AND b.item_id <> a.item_id ORDER BY similarity DESC LIMIT 5",
            ["item"],
            5,
        ),
        ("SELECT preference FROM user_preferences WHERE user_id = ?", ["user"], 1),
        ("SELECT item_id FROM item_clusters WHERE cluster = 3", [], None),
    ],
)
def test_query_answers_from_the_snapshot(filled: Path, sql: str, parameters: list[str], n_rows: int | None) -> None:
    ids = json.loads(p2rec("query", "SELECT min(item_id) AS item FROM items", "--store", filled, "--json").stdout)
    users = json.loads(p2rec("query", "SELECT min(user_id) AS user FROM users", "--store", filled, "--json").stdout)
    values = [part for name in parameters for part in ("-p", (ids[0] | users[0])[name])]
    call = p2rec("query", sql, "--store", filled, "--json", *values)
    assert call.returncode == 0, call.stderr
    rows = json.loads(call.stdout)
    assert rows
    assert n_rows is None or len(rows) == n_rows
    if "similarity" in rows[0]:
        similarity = [row["similarity"] for row in rows]
        assert similarity == sorted(similarity, reverse=True)
    if "preference" in rows[0]:
        assert sum(rows[0]["preference"]) == pytest.approx(1)


def test_show_refuses_options_that_would_change_nothing(tmp_path: Path) -> None:
    for words in (["--set", "foo=1"], ["--recipe", "paper"], ["--profile", "gpu"], ["--config", "x.toml"]):
        failed(p2rec("show", *words, "--store", tmp_path), 2, f"Without --plan {words[0]} would change nothing.")
    failed(p2rec("show", "knowledge", "--plan", "--store", tmp_path), 2, "--plan is of a whole run")


def test_show_prints_sizes_lineage_and_facts(filled: Path) -> None:
    snapshot = p2rec("show", "--store", filled)
    assert snapshot.returncode == 0, snapshot.stderr
    assert "item_knowledge" in snapshot.stdout
    assert "480" in snapshot.stdout
    knowledge = p2rec("show", "knowledge", "--store", filled)
    for words in (
        "lineage",
        "adapter ← finetune/",
        "sequences ← ingest/",
        "interactions-file ← source/",
        "random_init",
    ):
        assert words in knowledge.stdout


def test_data_import_of_a_csv_and_its_run_plan(tmp_path: Path) -> None:
    rows = [f"u{u},i{(u + n) % 8},{1_600_000_000 + 60 * n}" for u in range(8) for n in range(6)]
    (tmp_path / "clicks.csv").write_text("visitor,sku,time\n" + "\n".join(rows) + "\n")
    columns = ["--user-column", "visitor", "--item-column", "sku", "--timestamp-column", "time"]
    store = tmp_path / "store"
    call = p2rec(
        "data", "import", tmp_path / "clicks.csv", "--name", "clicks", "--format", "csv", *columns, "--store", store
    )
    assert call.returncode == 0, call.stderr
    counts = dict(line.split("\t") for line in call.stdout.splitlines() if "\t" in line)
    assert counts["n_interactions"] == "48"
    planned = p2rec("run", "-d", "clicks", "--dry-run", "--json", "--store", store)
    assert {row["slot"]: row["cached"] for row in json.loads(planned.stdout)}["ingest"] is True
    assert "clicks" in p2rec("data", "list", "--store", store).stdout


def test_bad_settings_name_the_setting(tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    failed(p2rec("run", *store, "--set", "clusters.n_cluster=9"), 2, "clusters.n_cluster", "did you mean n_clusters?")
    failed(p2rec("run", *store, "--set", "clusters.n_clusters=1"), 2, "clusters.n_clusters = 1", "greater than or")
    failed(p2rec("run", *store, "--config", tmp_path / "none.toml"), 2, "none.toml cannot be read")
    failed(p2rec("stage", "cluster", *store), 2, "There is no stage 'cluster'", "clusters")


def test_bad_data_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "a.csv").write_text("visitor,item_id,timestamp\nu,i,1\n")
    csv = ("--name", "x", "--format", "csv")
    failed(p2rec("data", "import", tmp_path / "none.csv", *csv, *store), 3, "none.csv")
    failed(p2rec("data", "import", tmp_path / "empty.csv", *csv, *store), 3, "empty.csv", "empty")
    failed(p2rec("data", "import", tmp_path / "a.csv", *csv, *store), 3, "user_id", "visitor")
    thin = ("--user-column", "visitor", "--min-user-interactions", "9")
    failed(p2rec("data", "import", tmp_path / "a.csv", *csv, *thin, *store), 3, "a.csv")
    failed(p2rec("run", "-d", "nowhere", *store), 3, "There is no dataset 'nowhere'")
    offline = {"P2REC_OFFLINE": "1", "P2REC_DATASETS_DIR": str(tmp_path)}
    call = p2rec("data", "fetch", "-d", "beauty", *store, **offline)
    failed(call, 3, "beauty", "P2REC_DATASETS_DIR")
    assert not list((tmp_path / "store" / "artefacts").iterdir())


def test_a_run_against_a_server_carries_the_tag_by_which_a_silent_one_is_found_out(
    filled: Path, sets: list[str]
) -> None:
    call = p2rec("run", "--store", filled, *sets, "--json", PREFECT_API_URL=PREFECT_API_URL.value())
    assert call.returncode == 0, call.stderr
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=["p2rec"]))
    with get_client(sync_client=True) as client:
        assert [run.name for run in client.read_flow_runs(flow_run_filter=tagged)] == ["sample"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--set", "clusters.seed=77"],
        ["run", "--force"],
        ["run", "--set", "clusters.seed=77", "--dry-run"],
        ["stage", "clusters", "--force"],
        ["experiment", "run", "sample"],
        ["experiment", "run", "sample", "--dry-run"],
        ["recommend", "--device", "cuda"],
    ],
)
def test_a_gpu_that_is_not_there_is_refused_before_a_server_is_started(
    filled: Path, sets: list[str], tmp_path: Path, command: list[str]
) -> None:
    options = [] if command[0] == "recommend" else ["--set", "runtime.device=cuda"]
    if command[0] in ("run", "stage"):
        options += sets
    home = tmp_path / "prefect"
    call = p2rec(*command, *options, "--store", filled, PREFECT_API_URL="", PREFECT_HOME=str(home))
    failed(call, 2, "The device (runtime.device, --device) is 'cuda', but torch", "sees no CUDA GPU")
    assert not home.exists()
    assert bool(call.stdout) == ("--dry-run" in command)  # what it would compute is said all the same


def test_what_is_cached_needs_no_gpu(filled: Path, sets: list[str]) -> None:
    call = p2rec("run", *sets, "--set", "runtime.device=cuda", "--store", filled, PREFECT_API_URL="")
    assert call.returncode == 0, call.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--set", "clusters.seed=77"],
        ["stage", "clusters", "--set", "clusters.seed=77"],
        ["refresh"],
        ["experiment", "run", "sample"],
        ["serve"],
    ],
)
def test_a_configured_server_that_is_down_is_named_with_what_to_do(
    filled: Path, sets: list[str], command: list[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    options = sets if command[0] in ("run", "stage", "refresh") else []
    call = p2rec(*command, *options, "--store", filled, PREFECT_API_URL=url)
    failed(call, 1, f"The Prefect server at {url}, which PREFECT_API_URL names, does not answer", "Start it, or")


def test_the_password_of_a_configured_server_is_not_printed(filled: Path, sets: list[str]) -> None:
    call = p2rec("run", *sets, "--store", filled, PREFECT_API_URL=f"http://me:secret@127.0.0.1:{free_port()}/api")
    failed(call, 1, "The Prefect server at http://127.0.0.1:")
    assert "secret" not in call.stderr


def test_a_store_that_is_not_there_or_refuses_a_query(filled: Path, tmp_path: Path) -> None:
    failed(p2rec("query", "SELECT 1", "--store", tmp_path / "none"), 4, "There is no store")
    failed(p2rec("query", "DROP VIEW items", "--store", filled), 2, "Only one SELECT")
    failed(p2rec("query", "SELECT * FROM read_csv('/etc/passwd')", "--store", filled), 2, "DuckDB refuses")
    failed(p2rec("query", "SELECT 1", "-d", "beauty", "--store", filled), 4, "p2rec run --dataset beauty")


def test_stages_that_cannot_be_computed_leave_the_store_as_it_was(filled: Path, sets: list[str]) -> None:
    before = {name: content for name, content in tree(filled).items() if not name.startswith("locks")}
    for assignment, status, said in (
        ("clusters.n_clusters=481", 3, "clusters.n_clusters = 481"),
        ("language_model.name_or_path=/no/such/model", 5, "/no/such/model"),
        ("fusion.n_components=4000", 3, "fusion.n_components"),
    ):
        call = p2rec("run", "--store", filled, *sets, "--set", assignment, PREFECT_API_URL=PREFECT_API_URL.value())
        failed(call, status, said)
        after = {name: content for name, content in tree(filled).items() if not name.startswith("locks")}
        assert after == before
