"""The experiment flow on a real Prefect server, and its command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.settings import PREFECT_API_URL

from deployments.serve import deployments
from flows.cli import app
from flows.definitions import built_in, find_definition
from flows.experiment import experiment, watching
from flows.matrix import CellsFailed
from p2rec_core.errors import P2RecError, SettingsError
from p2rec_core.metrics import SEEN_POLICIES
from p2rec_core.settings.experiment import ExperimentSettings
from p2rec_core.settings.pipeline import assigned
from storage.artefacts import Store
from tasks.experiments import read_record
from tasks.matrix import Matrix
from tasks.matrix_run import MatrixRun

FAILING = "sample/recommender.sasrec.bad/seed1"
FAILING_PROBE = "sample/probe.bad"


def contents(store: Path) -> dict[str, tuple[int, bytes]]:
    paths = (path for path in (store / "artefacts").rglob("*") if path.is_file())
    return {str(path.relative_to(store)): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def definition(small_assignments: list[str]) -> ExperimentSettings:
    """The built-in experiment on the sample, small, with an arm that cannot be computed."""
    known = find_definition("sample", Path("none"))
    values = known.model_dump() | {"name": "small", "settings": dict(map(assigned, small_assignments)), "seeds": [1]}
    values["arms"]["bad"] = {"variant": "p2rec", "settings": {"fusion.n_components": 4000}}
    return ExperimentSettings.model_validate(values)


@pytest.fixture(scope="module")
def first(
    prefect_server: None, definition: ExperimentSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], list[str]]:
    """A store in which the experiment was run, the report of the run, and what a watcher saw."""
    store = tmp_path_factory.mktemp("experiment") / "store"
    seen: list[str] = []

    def watch(run: MatrixRun) -> None:
        assert len(run.running) <= 2
        seen.append(f"{len(run.results)}/{run.n_nodes} {run.left()}")

    with watching(watch), pytest.raises(CellsFailed) as caught:
        experiment.with_options(flow_run_name="first")(name="small.toml", settings=definition, store=store, parallel=2)
    assert caught.value.exit_status == 3
    assert "1 of 4 cells of 'small' could not be computed; the others are there." in caught.value.problem
    assert f"{FAILING}: " in caught.value.problem
    assert "fusion.n_components" in caught.value.remedy
    return store, caught.value.report, seen


@pytest.fixture
def filled(first: tuple[Path, dict[str, Any], list[str]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[0], tmp_path / "store"))


def test_every_cell_is_computed_but_the_one_that_cannot_be(first: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, report, seen = first
    assert {cell["arm"]: cell["outcome"] for cell in report["cells"]} == {
        "base": "computed",
        "ci": "computed",
        "p2rec": "computed",
        "bad": "failed",
    }
    n_nodes = len(report["nodes"])
    assert report["outcomes"] == {"cached": 0, "computed": n_nodes - 3, "rebuilt": 0, "failed": 3}
    for cell in report["cells"][:3]:
        assert cell["validation"] > 0
        assert cell["recommender"].split("/")[0] in ("recommender", "backbone")
        assert {row["seen"] for row in cell["metrics"]} == set(SEEN_POLICIES)
    shared = report["datasets"]["sample"]
    assert set(shared["artefacts"]) >= {
        "ingest",
        "backbone",
        "clusters",
        "preferences",
        "finetune",
        "knowledge",
        "evaluation.no-learning",
    }
    assert [row["method"] for row in shared["no_learning"]][:3] == ["popularity", "recency copy", "id + 1"]
    assert seen[0] == f"0/{n_nodes} time left unknown"
    assert seen[-1] == f"{n_nodes - 3}/{n_nodes} about 0 s left"


def test_states_and_artifacts_tell_what_happened(first: tuple[Path, dict[str, Any], list[str]]) -> None:
    ours = FlowRunFilter(name=FlowRunFilterName(any_=["first"]))
    with get_client(sync_client=True) as client:
        [run] = client.read_flow_runs(flow_run_filter=ours)
        for _ in range(100):  # the server hears of task runs through events, a little later
            states = {task.name: task.state_name for task in client.read_task_runs(flow_run_filter=ours)}
            if len(states) == len(first[1]["nodes"]) - 1 and states.get(FAILING) == "Failed":
                break
            time.sleep(0.2)
    assert run.state_name == "Failed"
    assert states.pop(FAILING) == "Failed"
    assert states.pop(FAILING_PROBE) == "Failed"  # the same knowledge cannot be prepared
    assert set(states.values()) == {"Computed"}
    summary = Artifact.get("experiment")
    assert summary is not None
    assert "3 of 4 cells are there" in str(summary.data)
    assert "sample/sasrec/bad/seed 1: " in str(summary.data)
    assert Artifact.get("experiment-results") is not None
    comparison = Artifact.get("experiment-report")
    assert comparison is not None
    assert "sample/sasrec/bad/seed 1" in str(comparison.data)
    with get_client(sync_client=True) as client:
        figures = [a.key for a in client.read_artifacts() if a.type == "image"]
    assert any(key.startswith("figure-") for key in figures if key)


def test_what_is_there_is_taken_and_a_new_seed_computes_its_cells_alone(
    filled: Path, definition: ExperimentSettings
) -> None:
    before = contents(filled)
    record = (filled / "experiments" / "small.json").read_bytes()
    report = experiment(name="small.toml", settings=definition, arms=["base", "ci"], store=filled)
    assert {node["outcome"] for node in report["nodes"].values()} == {"cached"}
    assert contents(filled) == before
    assert (filled / "experiments" / "small.json").read_bytes() == record
    report = experiment(name="small.toml", settings=definition, arms=["base"], seeds=[1, 2], store=filled)
    new = [name for name, node in report["nodes"].items() if node["outcome"] == "computed"]
    assert new == ["sample/recommender.sasrec.base/seed2", "sample/evaluation.sasrec.base/seed2"]
    assert contents(filled).items() >= before.items()
    cells = read_record(Store.open(filled), "small").cells
    assert sorted((cell.arm, cell.seed, str(entry.state)) for cell, entry in cells.items()) == [
        ("bad", 1, "failed"),
        ("base", 1, "done"),
        ("base", 2, "done"),
        ("ci", 1, "done"),
        ("p2rec", 1, "done"),
    ]


def test_built_in_experiments_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("P2REC_DATASETS_DIR", raising=False)
    known = built_in()
    assert {"ablations", "beauty", "cost", "ml-1m", "quick", "sample", "table2", "yelp"} <= known.keys()
    assert {name for name, definition in known.items() if definition.probes} == {"ablations", "sample"}
    assert len(known["table2"].datasets) * len(known["table2"].backbones) == 12
    for definition in known.values():
        assert definition.title
        assert all(arm.title for arm in definition.arms.values())
        for dataset in definition.datasets:
            for backbone in definition.backbones:
                for arm in definition.arms:
                    definition.pipeline(dataset, arm, backbone=backbone, seed=1)
    assert len(Matrix(known["sample"], Store.open(tmp_path / "store")).cells) == 6
    with pytest.raises(SettingsError, match=r"no experiment 'tabel2' \(did you mean table2\? known: ablations"):
        find_definition("tabel2", tmp_path)


def test_the_deployment_has_a_form(prefect_server: None) -> None:
    deployment = {d.name: d for d in deployments()}["experiment"]
    schema = deployment._parameter_openapi_schema.model_dump()
    assert set(schema["definitions"]["Variant"]["enum"]) >= {"base", "ci", "p2rec"}
    assert schema["properties"]["name"]["enum"] == list(built_in())
    assert "gru4rec" in schema["properties"]["backbones"]["anyOf"][0]["items"]["enum"]


# ---------------------------------------------------------------- the command line


def command(*arguments: str | Path) -> list[str]:
    # a shell starts what it runs in the background with Ctrl-C switched off, and this would be inherited
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from flows.cli import main; main()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def p2rec(*arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
    )


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line in this process: its status, what it printed, and what it said of errors."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "200")
        status, message = 0, ""
        try:
            app([str(argument) for argument in arguments], result_action="return_value")
        except P2RecError as error:
            status, message = error.exit_status, f"{error.problem} {error.remedy}"
        out, err = capsys.readouterr()
        return status, " ".join(out.split()), message or err

    return call


@pytest.fixture
def file(definition: ExperimentSettings, tmp_path: Path) -> Path:
    """The experiment without the arm that cannot be computed, as a file."""
    lines = [
        'name = "small"',
        'datasets = ["sample"]',
        'backbones = ["sasrec"]',
        "seeds = [1]",
        "probes = true",
        "[settings]",
    ]
    lines += [f'"{name}" = {json.dumps(value)}' for name, value in definition.settings.items()]
    for arm in ("base", "ci", "p2rec"):
        lines += [f"[arms.{arm}]", f'variant = "{arm}"']
    path = tmp_path / "small.toml"
    path.write_text("\n".join(lines))
    return path


def test_a_cached_experiment_is_answered_without_prefect_torch_or_children(filled: Path, file: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "def forbidden(*args, **kwargs): raise AssertionError('a child was started')\n"
        "subprocess.Popen.__init__ = forbidden\n"
        "from flows.cli import app\n"
        "app(sys.argv[1:], result_action='return_value')\n"
        "heavy = {'torch', 'prefect', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    before = contents(filled)
    call = subprocess.run(
        [sys.executable, "-c", script, "experiment", "run", str(file), "--store", str(filled), "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PREFECT_HOME": str(filled / "none")},
    )
    assert call.returncode == 0, call.stderr
    report = json.loads(call.stdout)
    assert (report["n_done"], report["outcomes"]["cached"]) == (3, len(report["nodes"]))
    assert {cell["outcome"] for cell in report["cells"]} == {"cached"}
    assert contents(filled) == before


def test_show_and_dry_run_tell_what_is_there_and_how_long_the_rest_takes(filled: Path, file: Path, call: Call) -> None:
    status, out, err = call("experiment", "show", file, "--store", filled, "--seeds", "1,2")
    assert status == 0, err
    assert re.search(r"3 of 6 cells are cached, (\d+) of (\d+) computations\.", out)
    assert "left." in out
    assert re.search(r"missing \d of \d+ stages are cached", out)
    _, out, _ = call("experiment", "run", file, "--store", filled, "--seeds", "1,2", "--dry-run", "--json")
    values = json.loads(out)
    assert [cell["state"] for cell in values["cells"]] == ["done"] * 3 + ["missing"] * 3
    assert values["n_unknown"] == 0
    assert values["seconds_left"] > 0
    assert "small: results of 3 of 4 cells" in call("experiment", "list", "--store", filled)[1]


def test_an_experiment_that_was_run_is_known_by_its_name(filled: Path, file: Path, call: Call) -> None:
    mine = ("--as", "mine", "--set", "fusion.smoothing=0.25", "--arms", "base")
    status, _, err = call("experiment", "run", file, *mine, "--store", filled)
    assert status == 0, err
    file.unlink()
    assert "mine: results of 1 of 1 cells" in call("experiment", "list", "--store", filled)[1]
    status, out, err = call("experiment", "show", "mine", "--arms", "base", "--store", filled)
    assert status == 0, err
    assert "1 of 1 cells are cached" in out
    status, out, err = call("experiment", "run", "mine", "--arms", "base", "--store", filled, "--json")
    assert status == 0, err
    assert json.loads(out)["outcomes"]["computed"] == 0
    record = read_record(Store.open(filled), "mine")
    assert record.origin == "mine"
    assert record.settings.settings["fusion.smoothing"] == 0.25
    status, _, message = call("experiment", "show", "mien", "--store", filled)
    assert status == 2
    assert "There is no experiment 'mien' (did you mean mine? known: ablations" in message
    assert call("experiment", "show", "mine", "--store", filled.parent / "none")[0] == 2


def test_a_configuration_is_shared_by_all_cells(filled: Path, file: Path, call: Call, definition: Any) -> None:
    tables: dict[str, list[str]] = {}
    for name, value in definition.settings.items():
        group, _, setting = name.rpartition(".")
        tables.setdefault(group, []).append(f"{setting} = {json.dumps(value)}")
    tables["fusion"] = ["n_components = 7"]  # what the experiment itself sets goes before it
    config = file.with_name("clicks.toml")
    config.write_text("\n".join(line for group, lines in tables.items() for line in (f"[{group}]", *lines)))
    whole = file.read_text()
    settings = whole[whole.index("[settings]") : whole.index("[arms.base]")]
    file.write_text(whole.replace(settings, '[settings]\n"fusion.n_components" = 8\n'))
    words = ("--config", config, "--arms", "base,p2rec", "--store", filled, "--json")
    status, out, err = call("experiment", "run", file, *words)
    assert status == 0, err
    assert json.loads(out)["outcomes"]["computed"] == 0
    assert read_record(Store.open(filled), "small").origin == f"{file} --config {config}"
    status, out, err = call("experiment", "run", file, "--profile", "cpu", *words)
    assert status == 0, err
    assert json.loads(out)["outcomes"]["computed"] == 0
    assert read_record(Store.open(filled), "small").origin == f"{file} --profile cpu --config {config}"
    status, out, err = call("experiment", "run", file, "--profile", "cpu-bf16", *words, "--dry-run")
    assert status == 0, err
    assert {cell["state"] for cell in json.loads(out)["cells"]} == {"missing"}
    config.write_text('variants = ["base"]\n')
    status, _, message = call("experiment", "show", file, *words)
    assert status == 2
    assert "settings may not set variants: each cell of the matrix has its own" in message


def test_a_report_is_made_of_what_is_there(filled: Path, tmp_path: Path, call: Call) -> None:
    status, out, err = call("report", "--store", filled, "--out", tmp_path / "report")
    assert status == 0, err
    assert (tmp_path / "report" / "index.html").exists()
    assert "1 of its cells is missing" in out
    assert "p2rec experiment run small.toml --datasets sample --backbones sasrec --arms bad --seeds 1" in out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["experiment", "run", "tabel2"], 2, ["There is no experiment 'tabel2'", "did you mean table2?"]),
        (["experiment", "run", "nothing.toml"], 2, ["nothing.toml cannot be read"]),
        (["experiment", "run", "sample", "--backbones", "sasrek"], 2, ["no backbone 'sasrek'", "did you mean sasrec?"]),
        (["experiment", "run", "sample", "--arms", "p2rek"], 2, ["no arm 'p2rek'", "known: base, ci, p2rec"]),
        (["experiment", "run", "sample", "--datasets", "x"], 3, ["no dataset 'x'", "beauty, ml-1m, sample, yelp"]),
        (["experiment", "run", "sample", "--seeds", "1,a"], 2, ["'a' is not a seed"]),
        (["experiment", "run", "sample", "--parallel", "0"], 2, ["--parallel is 0"]),
        (["experiment", "run", "sample", "--set", "clusters.n_cluster=1"], 2, ["did you mean n_clusters?"]),
        (["experiment", "run", "sample", "--as", "../x"], 2, ["name = '../x'"]),
        (["report", "nothing"], 4, ["no results of an experiment 'nothing'", "p2rec experiment run nothing"]),
        (["report"], 4, ["results of 0 experiments"]),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], status: int, said: list[str], tmp_path: Path, call: Call) -> None:
    Store.open(tmp_path / "store")
    found, _, message = call(*arguments, "--store", tmp_path / "store")
    assert found == status, message
    assert "Traceback" not in message
    for words in said:
        assert words in message
    assert not list((tmp_path / "store" / "artefacts").iterdir())


def test_a_run_whose_cells_fail_says_so_in_the_end(
    filled: Path, file: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.cli.experiment.quiet_prefect", lambda: None)
    with file.open("a") as more:
        more.write('\n[arms.bad]\nvariant = "p2rec"\nsettings = { "fusion.n_components" = 4000 }\n')
    status, out, message = call("experiment", "run", file, "--store", filled)
    assert status == 3
    assert "1 of 4 cells of 'small' could not be computed" in message
    assert re.search(r"3 of 4 cells are there; computations: \d+ cached, 3 failed", out)
    assert "sample/sasrec/bad/seed 1: failed: 4000 principal components" in out


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            child = int(entry.parent.name)
            found += [child, *descendants(child)]
    return found


def gone(pids: list[int], within_s: float = 60.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_leaves_no_process_and_goes_on_to_the_same_bytes(
    first: tuple[Path, dict[str, Any], list[str]], file: Path, tmp_path: Path, how: signal.Signals
) -> None:
    store = tmp_path / "stopped"
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    arguments = command("experiment", "run", file, "--store", store, "--parallel", "2", "--json")
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, start_new_session=True
    )
    until = time.monotonic() + 120
    while time.monotonic() < until and not list((store / "artefacts").glob("clusters/*")):
        time.sleep(0.1)
    children = descendants(process.pid)
    assert children
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert gone(children)
    again = p2rec(*arguments[3:], PREFECT_API_URL=PREFECT_API_URL.value() or "")
    assert again.returncode == 0, again.stderr
    whole = {name: data for name, (_, data) in contents(first[0]).items() if not name.endswith("manifest.json")}
    assert {n: data for n, (_, data) in contents(store).items() if not n.endswith("manifest.json")} == whole
