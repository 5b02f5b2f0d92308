"""What the environment keeps secret is nowhere in the store, in what a run tells, or in what is made of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from p2rec_core.errors import P2RecError
from storage.artefacts import Store
from storage.doctor import examine
from storage.garbage import collect
from storage.snapshots import publish_snapshot
from tasks.dag import pipeline_slots
from tasks.health import further_findings

SECRET = "s3cr3t-0f-th1s-t3st"
VARIABLES = {
    "PREFECT_API_KEY": f"pnu_{SECRET}",
    "PREFECT_API_AUTH_STRING": f"admin:{SECRET}",
    "PREFECT_SERVER_API_AUTH_STRING": f"admin:{SECRET}",
    "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://me:{SECRET}@localhost/prefect",
    "HF_TOKEN": f"hf_{SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "HTTPS_PROXY": f"http://me:{SECRET}@proxy.example:3128",
    "WANDB_API_KEY": SECRET,
}


def _holding(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.fixture
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_secrets")
def test_no_secret_is_kept_or_told(driver, quick, source, tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    store, told = Store.open(tmp_path / "store"), []
    settings = quick()
    slots = list(pipeline_slots(settings, source))[:3]
    results = driver.run_slots(slots, store, settings.runtime, log=told.append)
    publish_snapshot(store, "tiny", {name: r.ref for name, r in results.items()}, {"n": 1})
    told += [json.dumps(r.to_json()) for r in results.values()]
    told += [json.dumps(dataclasses.asdict(examine(store, further=lambda: further_findings(store))), default=str)]
    told += [json.dumps(collect(store, dry_run=True).to_json())]
    assert not _holding(tmp_path)
    captured = capfd.readouterr()
    assert SECRET not in captured.out + captured.err + caplog.text + "".join(told)


@pytest.mark.usefixtures("_secrets")
def test_no_secret_is_in_what_an_error_says(driver, quick, source, tmp_path, capfd):
    store = Store.open(tmp_path / "store")
    settings = quick({"clusters.n_clusters": 999})
    with pytest.raises(P2RecError) as caught:
        driver.run_slots(list(pipeline_slots(settings, source))[:3], store, settings.runtime)
    captured = capfd.readouterr()
    assert SECRET not in f"{caught.value!r} {caught.value} {captured.out} {captured.err}"
    assert not _holding(tmp_path)
    shutil.rmtree(store.root)
