"""Language models of real size on a GPU, beside plain loops of transformers and peft, and recommenders there.

    python benchmarks/gpu_paths.py --out DIRECTORY            a few minutes
    python benchmarks/gpu_paths.py --out DIRECTORY --parts language --shapes llama-2-13b

Weights are drawn at random, in bfloat16 and on the GPU: time and memory do not depend on their values. Users are those
of a data set, so that lengths are real; the tokenizer is all-MiniLM-L6-v2's, as for the built-in random models. Both
sides take the same examples in the same optimiser steps, and multiply in bfloat16.
"""

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import clock
import numpy as np
import torch
from interactions import datasets_directory, written
from language_paths import Case, case_of, finetune_row, knowledge_row, tuned
from machine_limits import copy_gb_per_s, multiply_gflops, wait_for
from numpy.typing import NDArray
from options import add_report_options, checked_options, chosen, option_parser
from ours_run import EpochClock, loaded, trained_until_enough
from report import GIB, Part, Report, Row, measured
from run_facts import run_facts
from transformers import AutoTokenizer, LlamaConfig, LlamaModel

from p2rec_core.backbones.registry import ENCODERS
from p2rec_core.language.identity import minilm_directory
from p2rec_core.language.knowledge import item_knowledge
from p2rec_core.language.loading import LanguageModel
from p2rec_core.runtime import prepared_device
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.pipeline import pipeline_settings
from p2rec_core.training.recommender import EncoderShape
from storage.datasets import DATASETS

PARTS = ("recommenders", "language")
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-2-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}
"""Decoders by name: Dubey et al. (2024), table 3; Touvron et al. (2023), section 2.2."""

STEP_USERS = 64
"""Users in an optimiser step of the comparison: the default of the fine-tuning."""
MICRO_BATCH = 4096
"""Tokens that go through a model at once there."""
N_LARGE_STEPS = 4
"""Steps of the run that nothing is compared with, each of all users: enough tokens to fill the GPU."""
LARGE_MICRO_BATCH = 16_384
KNOWLEDGE_BATCH = 1024
LEARNING_RATE = 1e-4
"""Low, so that two sums of bfloat16 in another order stay near each other over an epoch of a model drawn at random."""
EPOCHS = 3
"""Epochs of a recommender; the first has the making of windows and the compilation of kernels too."""
SIDE = 8192
"""Rows and columns of the multiplied matrices."""
COPIED_BYTES = 4 << 30


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, with what depends on the machine filled in."""
    parser = option_parser(
        "Measure language models of real size, and recommenders, on a GPU.", writes="gpu.md and gpu.json", parts=PARTS
    )
    add_report_options(parser)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="of language models: which of %(default)s")
    parser.add_argument("--backbones", default=",".join(sorted(ENCODERS)), help="which of %(default)s")
    parser.add_argument("--dataset", choices=DATASETS, help="of users and items")
    parser.add_argument("--users", type=int, default=512, help="users that a language model is tuned on")
    parser.add_argument("--items", type=int, default=4096, help="items that it embeds")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of measurements")
    options = checked_options(parser, arguments, whole=("users", "items", "rounds"))
    options.quick = False
    options.shapes = chosen(parser, "shape", options.shapes, list(SHAPES))
    options.backbones = chosen(parser, "backbone", options.backbones, sorted(ENCODERS))
    options.dataset = options.dataset or ("beauty" if datasets_directory() is not None else "sample")
    return options


def gpu_limits(device: torch.device) -> dict[str, float]:
    """Rates of square matrix multiplication, 1e9 operations a second, and of a copy in the GPU's memory, GB/s."""
    return {
        "f32_gflops": multiply_gflops(torch.float32, side=SIDE, device=device),
        "bf16_gflops": multiply_gflops(torch.bfloat16, side=SIDE, device=device),
        "copy_gb_per_s": copy_gb_per_s(n_bytes=COPIED_BYTES, device=device),
    }


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds until the device has done the work, and what came of it."""
    begun = clock.now()
    result = work()
    wait_for(device)
    return clock.now() - begun, result


def _fresh_memory(device: torch.device) -> None:
    """Give memory back, and count the peak from here on."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak_gib(device: torch.device) -> float | None:
    """Most memory of the device that tensors took since ``_fresh_memory``; None of a processor."""
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def random_language_model(shape: str, sizes: dict[str, Any], device: torch.device) -> LanguageModel:
    """A decoder with weights drawn at random, in bfloat16 on the device."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory(), local_files_only=True)
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, bos_token_id=None, **sizes)
    torch.manual_seed(1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            model = LlamaModel(config)
    finally:
        torch.set_default_dtype(before)
    model.eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, True, config.hidden_size, f"{shape} (random-init)", True, shape)


def language_rows(
    model: LanguageModel,
    sequences: RaggedSequences,
    n_items: int,
    options: argparse.Namespace,
    title: str,
    peak_gflops: float,
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Fine-tuning and item knowledge of a language model beside the plain loops, and P2Rec's alone with larger steps.

    Args:
        model: The language model, in bfloat16.
        sequences: Training parts of the data set's users.
        n_items: N.
        options: Has ``users``, ``items`` and ``rounds``.
        title: Of the data set.
        peak_gflops: Rate of bfloat16 products.
    """

    def case(n_users: int, batch_users: int, micro_batch_tokens: int) -> Case:
        return case_of(
            f"{model.identity}, bf16",
            model,
            model,
            sequences,
            n_items,
            n_users,
            narrow=True,
            batch_users=batch_users,
            micro_batch_tokens=micro_batch_tokens,
            learning_rate=LEARNING_RATE,
        )

    small = case(options.users, STEP_USERS, MICRO_BATCH)
    rows = [
        finetune_row(small, title, options.rounds),
        knowledge_row(small, options.items, options.rounds, batch_size=KNOWLEDGE_BATCH),
    ]
    for row in rows:
        print(f"{row.model} {row.quantity}: {row.ours} s, the plain loop {row.peer} s", flush=True)
    large = case(N_LARGE_STEPS * options.users, options.users, LARGE_MICRO_BATCH)
    runs = [_tuning_alone(large, peak_gflops), _knowledge_alone(large, N_LARGE_STEPS * options.items, peak_gflops)]
    # the share of the limit is that of these runs
    return [replace(row, gflop=None) for row in rows], runs


def _tuning_alone(case: Case, peak_gflops: float) -> dict[str, Any]:
    """One epoch; of the instruction's tokens none is counted, as if it were computed once."""
    _fresh_memory(case.device)
    seconds, result = _timed(lambda: tuned(case), case.device)
    n_users = len(case.preferences)
    n_tokens = int(np.minimum(case.sequences.lengths, case.settings.max_length).sum())
    n_tokens += n_users * len(case.prompt.response)
    # forward and gradients of the states; the weights' own gradients are not needed
    return _run("fine-tuning", case, seconds, n_users, n_tokens, 4e-9, result.notes, peak_gflops)


def _knowledge_alone(case: Case, n_items: int, peak_gflops: float) -> dict[str, Any]:
    """Item knowledge after one batch to warm up."""
    _fresh_memory(case.device)
    model = case.model().eval()
    items = 1 + np.arange(n_items) % len(case.embeddings)
    embed = partial(item_knowledge, model, batch_size=KNOWLEDGE_BATCH, autocast=case.autocast)
    embed(items[:KNOWLEDGE_BATCH])
    seconds, result = _timed(lambda: embed(items), case.device)
    n_tokens = n_items * (1 + len(case.prompt.response))
    return _run("item knowledge", case, seconds, n_items, n_tokens, 2e-9, result.notes, peak_gflops)


def _run(
    what: str,
    case: Case,
    seconds: float,
    n_examples: int,
    n_tokens: int,
    gflop_per_weight: float,
    notes: Sequence[str],
    peak_gflops: float,
) -> dict[str, Any]:
    run = {
        "what": what,
        "model": case.name,
        "batch_users": case.settings.batch_users,
        "seconds": seconds,
        "examples": n_examples,
        "tokens": n_tokens,
        "of_bf16_limit": gflop_per_weight * case.n_weights * n_tokens / seconds / peak_gflops,
        "peak_gib": _peak_gib(case.device),
        "notes": list(notes),
    }
    print(json.dumps(run), flush=True)
    return run


def recommender_run(
    backbone: str,
    sequences: RaggedSequences,
    validation: NDArray[np.int32],
    n_items: int,
    dataset: str,
    device: torch.device,
) -> dict[str, Any]:
    """Seconds of each epoch of Base with the data set's recipe, validation included."""
    changes: dict[str, dict[str, Any]] = {"encoder": {"backbone": backbone}, "training": {"max_epochs": EPOCHS}}
    if backbone == "fmlp_rec":
        changes["encoder"]["max_length"] = 20
    recipe = pipeline_settings(dataset=dataset, changes={"recommender": changes}).recommender
    encoder = EncoderShape(recipe.encoder.backbone, recipe.encoder.options())
    _fresh_memory(device)
    told = EpochClock()
    trained_until_enough(sequences, validation, n_items, encoder, recipe.training, device, told)
    last = told.curve[-1]
    print(f"{backbone}: {last['train_s']:.2f} + {last['validate_s']:.2f} s an epoch", flush=True)
    return {"backbone": backbone, "curve": told.curve, "peak_gib": _peak_gib(device)}


def opened(options: argparse.Namespace) -> Report:
    """The report of what was asked for."""
    prepared_device("cuda", options.threads)
    shown = ("parts", "shapes", "backbones", "dataset", "users", "items", "rounds", "clock", "threads")
    return Report.opened(
        options, "gpu", "P2Rec on a GPU", "plain", run_facts("gpu_paths.py", options, shown, device="cuda")
    )


def measure(options: argparse.Namespace, report: Report) -> None:
    """Measure everything that was asked for."""
    device = prepared_device("cuda", options.threads)
    found = gpu_limits(device)
    report.facts["limits of the GPU"] = {name: round(value) for name, value in found.items()}
    with tempfile.TemporaryDirectory() as folder:
        data = written(options.dataset, Path(folder))
        sequences, validation, n_items = loaded(data.path)

    def recommender(backbone: str) -> Part:
        return Part([], [recommender_run(backbone, sequences, validation, n_items, options.dataset, device)])

    def language(shape: str) -> Part:
        _fresh_memory(device)
        model = random_language_model(shape, SHAPES[shape], device)
        return Part(*language_rows(model, sequences, n_items, options, data.title, found["bf16_gflops"]))

    for backbone in options.backbones if "recommenders" in options.parts else ():
        report.measure(f"recommender, {backbone}", partial(recommender, backbone))
    for shape in options.shapes if "language" in options.parts else ():
        report.measure(f"language, {shape}", partial(language, shape))


if __name__ == "__main__":
    sys.exit(measured(opened, measure, parsed()))
