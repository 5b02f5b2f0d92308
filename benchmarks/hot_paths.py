"""Side by side, in one run: each hot path against the plain way of writing it.

    python benchmarks/hot_paths.py

Ratios are what counts: machines are noisy, and both sides of a ratio are timed in turn.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from p2rec_core.language.knowledge import item_knowledge
from p2rec_core.language.loading import load_language_model
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import build_prompt
from p2rec_core.objectives import catalogue_cross_entropy
from p2rec_core.runtime import prepared_device

ROUNDS = 3


def compared(name: str, ours: Callable[[], object], plain: Callable[[], object]) -> None:
    """Time both in turn and print the ratio, with its spread."""
    ours(), plain()
    ratios, ours_s = [], []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        ours()
        between = time.perf_counter()
        plain()
        ours_s.append(between - begun)
        ratios.append((time.perf_counter() - between) / (between - begun))
    spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
    print(f"{name:58s} {statistics.median(ours_s):7.3f} s  {statistics.median(ratios):5.1f} x faster ({spread})")


def cross_entropy(n_positions: int = 2048, n_items: int = 12_101, width: int = 64) -> None:
    """Loss and gradients of one training step at Beauty's size."""
    states = torch.randn(n_positions, width, requires_grad=True)
    table = torch.randn(n_items, width).mul(0.05).requires_grad_()
    targets = torch.randint(n_items, (n_positions,))
    compared(
        "cross-entropy over the catalogue against logits in memory",
        lambda: catalogue_cross_entropy(states, table, targets).backward(),
        lambda: F.cross_entropy(states @ table.T, targets, reduction="sum").backward(),
    )


def knowledge(n_items: int = 512, width: int = 64, n_clusters: int = 50) -> None:
    """Item knowledge of a causal model, with the instruction's keys and values computed once."""
    loaded = load_language_model("random-llama-small", seed=1)
    prompt = build_prompt(
        loaded.tokenizer,
        "Given the user's purchase history, predict the user's distribution among {n_clusters} purchase preferences.",
        "Response:",
        n_clusters=n_clusters,
        causal=loaded.causal,
    )
    embeddings = np.random.default_rng(1).normal(size=(n_items, width)).astype(np.float32)
    models = {
        shared: PreferenceLanguageModel(
            loaded, prompt, embeddings, np.ones(n_items, bool), n_clusters, shared_prefix=shared
        ).eval()
        for shared in (True, False)
    }
    compared(
        "item knowledge, shared instruction against plain forward",
        lambda: item_knowledge(models[True], batch_size=256),
        lambda: item_knowledge(models[False], batch_size=256),
    )


def main() -> None:
    """Measure everything."""
    prepared_device("cpu", 2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    cross_entropy()
    knowledge()


if __name__ == "__main__":
    main()
