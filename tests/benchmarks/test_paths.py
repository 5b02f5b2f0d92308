"""The plain ways compute what P2Rec computes, and the quick form runs to its end."""

import argparse
import json
import os
import sys

import numpy as np
import pytest
import torch
from catalogue_paths import cross_entropy_row, kmeans_row, neighbours_row
from gpu_paths import language_rows, random_language_model
from language_paths import case, finetune_row, plain_forward
from processes import run_command
from store_paths import store_rows

from p2rec_core.sequences import RaggedSequences

LENGTHS = np.array([3, 9, 1, 5, 7, 2])
ITEMS = np.arange(1, LENGTHS.sum() + 1, dtype=np.int32)
SEQUENCES = RaggedSequences(ITEMS, np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_plain_forward_is_the_models(pooling):
    this = case("random-llama-tiny", SEQUENCES, len(ITEMS), len(LENGTHS))
    model = this.model().eval()
    model.pooling = pooling
    rows = [torch.from_numpy(part.astype(np.int64)) for part in np.split(ITEMS, np.cumsum(LENGTHS)[:-1])]
    with torch.no_grad():
        ours = model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.from_numpy(LENGTHS))[0]
        plain = plain_forward(model, rows)
    torch.testing.assert_close(plain, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("narrow", [False, True])
def test_both_ways_of_tuning_have_the_same_curve(narrow):
    row = finetune_row(case("random-llama-tiny", SEQUENCES, len(ITEMS), len(LENGTHS), narrow=narrow), "six users", 1)
    assert row.ratios[0] > 0
    assert row.model == ("random-llama-tiny, bf16" if narrow else "random-llama-tiny")
    assert "6 users" in row.note
    assert ("mean training errors" if narrow else "the same mean training error to") in row.note


def test_a_drawn_language_model_is_measured_by_itself_too():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = random_language_model("tiny", sizes, torch.device("cpu"))
    assert model.causal
    assert model.model.dtype == torch.bfloat16
    options = argparse.Namespace(users=3, items=8, rounds=1)
    rows, runs = language_rows(model, SEQUENCES, len(ITEMS), options, "six users", 100.0)
    assert [(row.model, len(row.ratios)) for row in rows] == [("tiny, bf16", 1)] * 2
    tuning, knowledge = runs
    assert (tuning["examples"], knowledge["examples"]) == (len(LENGTHS), 32)
    assert tuning["tokens"] > LENGTHS.sum()
    assert all(0 < run["of_bf16_limit"] < 1 and run["notes"] == [] for run in runs)


def test_both_sides_of_the_catalogue_agree():
    loss = cross_entropy_row(1, n_positions=64, n_items=300)
    near = neighbours_row(1, n_items=500, n_rows=100)
    groups = kmeans_row(1, 1, n_items=1000, width=16, n_centres=50)
    assert [len(row.ratios) for row in (loss, near, groups)] == [1, 1, 1]
    assert loss.gflop == pytest.approx(6e-9 * 64 * 300 * 64)


def test_the_store_is_measured_and_leaves_nothing(tmp_path):
    rows = store_rows(tmp_path, n_items=500, width=16, rounds=2)
    assert [row.quantity for row in rows] == ["store: write", "store: verify", "store: read"]
    assert all(len(row.ratios) == 2 and "GB/s" in row.note for row in rows)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_quick_form_runs_to_its_end(benchmarks, tmp_path):
    out, history = tmp_path / "out", tmp_path / "history.jsonl"
    script = str(benchmarks / "hot_paths.py")
    command = [sys.executable, script, "--quick", "--out", str(out), "--history", str(history)]
    told = run_command(command, folder=tmp_path, environment={"P2REC_DATASETS_DIR": "", "OMP_NUM_THREADS": "2"})
    report = json.loads((out / "paths.json").read_text())
    assert {row["quantity"] for row in report["rows"]} >= {
        "loss and gradients of a step",
        "LM fine-tuning, one epoch",
        "item knowledge",
        "store: verify",
        "p2rec --help",
        "cached p2rec run beside the cold one",
        "what Prefect adds to a cached stage",
    }
    assert report["limits"]["f32_gflops"] > 0
    assert min(ratio for row in report["rows"] for ratio in row["ratios"]) > 0
    assert (out / "paths.md").read_text() in told
    assert len(history.read_text().splitlines()) == 1
    assert sorted(os.listdir(out)) == ["paths.json", "paths.md", "paths.png"]


@pytest.mark.slow
def test_our_half_of_the_comparison_runs_without_its_peer(benchmarks, tmp_path):
    command = [sys.executable, str(benchmarks / "peers.py"), "--quick", "--out", str(tmp_path), "--parts", "limits"]
    told = run_command(command, folder=tmp_path, environment={"OMP_NUM_THREADS": "2"})
    assert "P2Rec beside RecBole and pandas" in told
    assert json.loads((tmp_path / "peers.json").read_text())["limits"]["copy_gb_per_s"] > 0
