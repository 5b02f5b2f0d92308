"""How the cost of each stage grows with the size of its input: seconds at doubling sizes and the fitted exponent.

    python benchmarks/growth.py --out DIRECTORY [--parts ingest,training] [--scale 1]

Input comes from the embedded generator, or is drawn where a stage reads vectors alone. An exponent is the slope of log
seconds over log size, fitted to all sizes; the last slope is that between the two largest. What costs the same at any
size makes an exponent smaller; a last slope above 1.15 is named as growing faster than its input.
"""

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import clock
import numpy as np
import torch
from interactions import drawn
from language_paths import case
from options import checked_options, option_parser
from run_facts import keep_to, run_facts

from p2rec_core.clustering import cluster_items
from p2rec_core.fusion import IdTable, nearest_items
from p2rec_core.language.finetune import finetune
from p2rec_core.language.knowledge import item_knowledge
from p2rec_core.language.loading import load_language_model
from p2rec_core.preferences import preference_vectors
from p2rec_core.ranking import ranks_of_users
from p2rec_core.recommender import NextItemObjective, Recommender, recommender_scorer
from p2rec_core.runtime import prepared_device
from p2rec_core.sequences import RaggedSequences
from p2rec_core.settings.data import IngestSettings, SourceFormat
from p2rec_core.settings.sequence_model import EncoderSettings
from p2rec_core.training.recommender import EncoderShape
from storage.ingest.pipeline import ingest
from storage.sample import generate_sample

PARTS = ("ingest", "training", "evaluation", "clusters", "neighbours", "language")
FASTER_THAN_INPUT = 1.15
"""A slope above this is no longer called linear."""
REPEATS = 2
CPU = torch.device("cpu")

Work = Callable[[], object]


@dataclass(frozen=True)
class Curve:
    """The cost of one stage over one size.

    Attributes:
        part: Name of the part that it belongs to.
        stage: What is measured.
        over: What grows.
        sizes: Its values, ascending.
        seconds: The least of ``REPEATS`` runs at each size.
    """

    part: str
    stage: str
    over: str
    sizes: list[int]
    seconds: list[float]

    @property
    def exponent(self) -> float:
        """Slope of log seconds over log size."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.seconds), 1)[0])

    @property
    def last_slope(self) -> float:
        """The same between the two largest sizes."""
        return float(np.log(self.seconds[-1] / self.seconds[-2]) / np.log(self.sizes[-1] / self.sizes[-2]))

    @property
    def verdict(self) -> str:
        """Whether it grows faster than its input."""
        if self.last_slope <= FASTER_THAN_INPUT:
            return "linear or better"
        return f"faster than its input beyond {self.sizes[-2]:,}"


def sequences(*, n_users: int = 2000, n_items: int = 2000, mean_length: float = 12.0) -> RaggedSequences:
    """Sequences of the embedded generator."""
    sample = generate_sample(n_users=n_users, n_items=n_items, n_categories=20, mean_length=mean_length)
    return _ragged([np.asarray(row) + 1 for row in sample.sequences])


def repeated(n_users: int, length: int, n_items: int) -> RaggedSequences:
    """Users with so many items each, drawn evenly."""
    rng = np.random.default_rng(1)
    return _ragged(list(rng.integers(1, n_items + 1, size=(n_users, length))))


def _ragged(rows: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]) -> RaggedSequences:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return RaggedSequences(np.concatenate(rows).astype(np.int32), offsets)


def recommender(n_items: int) -> Recommender:
    """An untrained SASRec of the default shape."""
    settings = EncoderSettings(backbone="sasrec")
    torch.manual_seed(1)
    return Recommender(IdTable(n_items, settings.hidden_size), EncoderShape("sasrec", settings.options()).build())


def training_epoch(rows: RaggedSequences, n_items: int) -> Work:
    """Losses and gradients of one epoch."""
    model = recommender(n_items)
    objective = NextItemObjective(model, rows, None, max_length=50, batch_positions=2048, seed=1, device=CPU)

    def run() -> None:
        for (batch,) in objective.steps(0):
            torch.autograd.backward(objective.loss(batch))

    return run


def evaluation(rows: RaggedSequences, n_items: int) -> Work:
    """Ranking all items for all users."""
    scorer = recommender_scorer(recommender(n_items).eval(), rows, max_length=50, device=CPU)
    targets = np.random.default_rng(1).integers(1, n_items + 1, size=len(rows)).astype(np.int32)
    return torch.no_grad()(lambda: ranks_of_users(scorer, targets, seen=("keep",)))


def clustering(n_items: int, n_clusters: int) -> Work:
    """Ten rounds of k-means at 64 dimensions."""
    vectors = np.random.default_rng(1).normal(size=(n_items, 64)).astype(np.float32)
    chosen = {"n_clusters": n_clusters, "n_init": 1, "max_iter": 10, "normalise": False, "seed": 1}
    return lambda: cluster_items(vectors, np.ones(n_items, bool), **chosen)


def neighbours(n_items: int) -> Work:
    """The ten nearest of every item, for fusion.smoothing."""
    vectors = np.random.default_rng(1).normal(size=(n_items, 64)).astype(np.float32)
    return lambda: nearest_items(vectors, 10, temperature=0.1)


def preferences(n_users: int) -> Work:
    """Preferences over 50 clusters."""
    rows = repeated(n_users, 10, 5000)
    clusters = np.random.default_rng(1).integers(0, 50, size=5000).astype(np.int32)
    return lambda: preference_vectors(rows, clusters, 50)


def importing(folder: Path, n_interactions: int) -> Work:
    """From a file to numbered, split sequences."""
    file = drawn(folder, n_interactions)
    settings = IngestSettings(format=SourceFormat.RECBOLE).model_dump(mode="json")
    return lambda: ingest(file, **settings)


def layered(folder: Path, n_layers: int) -> str:
    """A directory with a random-llama-small of so many layers."""
    small = load_language_model("random-llama-small", seed=1)
    config = copy.deepcopy(small.model.config)
    config.num_hidden_layers = n_layers
    path = folder / f"llama-{n_layers}-layers"
    type(small.model)(config).save_pretrained(path)
    small.tokenizer.save_pretrained(path)
    return str(path)


def tuning(model: str, n_users: int, length: int) -> Work:
    """An epoch of fine-tuning."""
    this = case(model, repeated(n_users, length, 1000), 1000, n_users)
    return lambda: finetune(
        this.language_model,
        this.prompt,
        this.embeddings,
        np.ones(len(this.embeddings), bool),
        this.sequences.items,
        this.sequences.offsets,
        this.preferences,
        **this.settings.model_dump(),
        pooling=this.pooling,
    )


def embedding(model: str, n_items: int) -> Work:
    """Item knowledge."""
    this = case(model, repeated(8, 5, n_items), n_items, 8)
    return partial(item_knowledge, this.model().eval())


def curves(folder: Path, scale: int) -> list[tuple[str, str, str, list[int], Callable[[int], Work]]]:
    """What is measured: part, stage, what grows, its sizes, and the work at a size."""

    def doubled(first: int, n: int = 4) -> list[int]:
        return [first * scale * 2**k for k in range(n)]

    llama, layers = "random-llama-small", [2, 4, 8, 16]
    return [
        ("ingest", "ingest", "interactions", doubled(100_000), partial(importing, folder)),
        ("training", "SASRec, an epoch", "users", doubled(500), lambda n: training_epoch(sequences(n_users=n), 2000)),
        ("training", "SASRec, an epoch", "items", doubled(1000), lambda n: training_epoch(sequences(n_items=n), n)),
        (
            "training",
            "SASRec, an epoch",
            "length",
            [6, 12, 24, 48],
            lambda n: training_epoch(repeated(500, n, 2000), 2000),
        ),
        ("evaluation", "full ranking", "users", doubled(500), lambda n: evaluation(sequences(n_users=n), 2000)),
        ("evaluation", "full ranking", "items", doubled(5000), lambda n: evaluation(repeated(1000, 10, n), n)),
        ("clusters", "k-means", "items", doubled(10_000), lambda n: clustering(n, 50)),
        ("clusters", "k-means", "K", [25, 50, 100, 200], lambda n: clustering(20_000, n)),
        ("clusters", "preferences", "users", doubled(50_000), preferences),
        ("neighbours", "nearest items", "items", doubled(2000), neighbours),
        ("language", f"fine-tuning, {llama}", "users", doubled(64), lambda n: tuning(llama, n, 8)),
        ("language", f"fine-tuning, {llama}", "length", [6, 12, 24, 48], lambda n: tuning(llama, 64, n)),
        ("language", "fine-tuning, width 256", "layers", layers, lambda n: tuning(layered(folder, n), 64, 8)),
        ("language", f"item knowledge, {llama}", "items", doubled(512), partial(embedding, llama)),
        ("language", "item knowledge, width 256", "layers", layers, lambda n: embedding(layered(folder, n), 512)),
    ]


def measured(part: str, stage: str, over: str, sizes: list[int], make: Callable[[int], Work]) -> Curve:
    """Time the work at every size."""
    make(sizes[0])()
    seconds = []
    for size in sizes:
        work = make(size)
        runs = []
        for _ in range(REPEATS):
            begun = clock.now()
            work()
            runs.append(clock.now() - begun)
        seconds.append(min(runs))
    return Curve(part, stage, over, sizes, seconds)


def markdown(found: list[Curve], facts: dict[str, object]) -> str:
    """The table, and what a reader has to know of the run."""
    lines = ["# How cost grows", "", "| stage | over | sizes | seconds | exponent | last slope | |"]
    lines.append("| --- | --- | --- | --- | ---: | ---: | --- |")
    for curve in found:
        sizes, seconds = (
            " ".join(values) for values in ([f"{n:,}" for n in curve.sizes], [f"{s:.3g}" for s in curve.seconds])
        )
        cells = [
            curve.stage,
            curve.over,
            sizes,
            seconds,
            f"{curve.exponent:.2f}",
            f"{curve.last_slope:.2f}",
            curve.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {name}: {value}" for name, value in facts.items())]) + "\n"


def plot(found: list[Curve], path: Path) -> None:
    """Seconds over size, both relative to the smallest size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for curve in found:
        relative = [size / curve.sizes[0] for size in curve.sizes]
        axes.plot(relative, [s / curve.seconds[0] for s in curve.seconds], "o-", label=f"{curve.stage} / {curve.over}")
    axes.plot([1, 8], [1, 8], color="grey", linestyle="--", label="linear")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("size of the input, relative to the smallest")
    axes.set_ylabel("seconds, relative to the smallest")
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure, print and save."""
    parser = option_parser(
        "Measure how the cost of each stage grows.",
        writes="growth.md, growth.json and growth.png",
        parts=PARTS,
        clock_by_default="cpu",
        threads=1,
    )
    parser.add_argument("--scale", type=int, default=1, help="how many times the sizes; whole")
    options = checked_options(parser, None, whole=("scale",))
    options.quick = False
    keep_to(options.threads)
    prepared_device("cpu", options.threads)
    facts = run_facts("growth.py", options, ("parts", "scale", "clock", "threads"))
    found: list[Curve] = []
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for part, stage, over, sizes, make in curves(Path(scratch), options.scale):
            if part not in options.parts:
                continue
            print(f"{stage} over {over} …", flush=True)
            found.append(measured(part, stage, over, sizes, make))
            (options.out / "growth.md").write_text(markdown(found, facts), encoding="utf-8")
            kept = [asdict(curve) | {"exponent": curve.exponent, "last_slope": curve.last_slope} for curve in found]
            (options.out / "growth.json").write_text(json.dumps({"facts": facts, "curves": kept}, indent=1))
            plot(found, options.out / "growth.png")
    print(markdown(found, facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
