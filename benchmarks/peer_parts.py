"""The parts of P2Rec beside RecBole and pandas: how each is measured."""

import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interactions import NAME, Interactions, drawn
from peer_options import WANTED_EPOCHS
from processes import BenchmarkError, run_script
from report import GIB, Part, Row

from p2rec_core.settings.data import IngestSettings, SourceFormat
from p2rec_core.settings.sequence_model import EncoderSettings

HERE = Path(__file__).parent
PEER_BATCH = 2048
"""RecBole's default batch, in (prefix, next item) examples."""
PEER_SCRIPTS = {"fmlp_rec": "fmlp_run.py"}
"""What trains the backbones that RecBole does not have; a script has its own batch."""
EVALUATE_REPEATS = 3
TIME_TO_NDCG = "time to the other side's NDCG@10"
PACE = "training, per epoch by the pace of its first steps"
MEMORY = "peak memory of training, whole process"

WANTED = {
    (TIME_TO_NDCG, "beauty", "sasrec"): 40,
    (TIME_TO_NDCG, "beauty", "gru4rec"): 10,
    (TIME_TO_NDCG, "beauty", "caser"): 10,
    ("full-ranking evaluation", "beauty", "sasrec"): 8,
    ("load to first batch", "ml-1m", "sasrec"): 5,
    (MEMORY, "beauty", "sasrec"): 2,
}
"""Ratios that P2Rec is to reach, by quantity, data set and backbone; of the whole data set and ten epochs."""

USUAL_WIDTH = EncoderSettings().hidden_size

COUNTS = ("n_users", "n_items", "n_validated", "n_examples", "threads")
"""What the two sides have to agree on."""

STEPS = ("timed_steps", "steps_per_epoch")

INGEST_COUNTS = ("n_users", "n_items", "n_interactions", "digest")
"""What pandas and P2Rec have to agree on; the digest is that of all sequences and targets."""


@dataclass(frozen=True)
class Sides:
    """How one measurement of either side is run.

    Attributes:
        peer_interpreter: Interpreter of the other side's environment.
        threads: Threads of either side.
        caser_length: RecBole's maximum length for Caser; its filters reach as far back.
        width: Width d of item embeddings and states on either side.
        last_epoch: Epoch after which P2Rec's training is broken off; None trains to the end of the recipe.
        pace_s: Seconds of steps that tell the pace of a training.
    """

    peer_interpreter: Path
    threads: int
    caser_length: int
    width: int = USUAL_WIDTH
    last_epoch: int | None = None
    pace_s: float = 30.0

    def ours(self, data: Interactions, backbone: str, task: str, *, seed: int, repeats: int = 1) -> dict[str, Any]:
        """One run of P2Rec; see ours_run.py."""
        request = {
            "task": task,
            "interactions": str(data.path),
            "dataset": data.dataset,
            "encoder": encoder_of(backbone, self.width).model_dump(mode="json"),
            "threads": self.threads,
            "seed": seed,
            "repeats": repeats,
            "last_epoch": self.last_epoch,
            "pace_s": self.pace_s,
        }
        return run_script(Path(sys.executable), HERE / "ours_run.py", request)

    def peer(
        self, data: Interactions, backbone: str, task: str, *, seed: int, repeats: int = 1, epochs: int = 1
    ) -> dict[str, Any]:
        """One run of RecBole, or for FMLP-Rec, which it lacks, of a plain program; see the scripts in peers/."""
        model, options, max_length = peer_model(encoder_of(backbone, self.width), self.caser_length)
        request = {
            "task": task,
            "data_path": str(data.path.parents[1]),
            "dataset": NAME,
            "model": model,
            "model_options": options,
            "max_length": max_length,
            "train_batch_size": PEER_BATCH,
            "threads": self.threads,
            "seed": seed,
            "epochs": epochs,
            "repeats": repeats,
            "pace_s": self.pace_s,
        }
        return run_script(self.peer_interpreter, HERE / "peers" / PEER_SCRIPTS.get(backbone, "recbole_run.py"), request)

    def named(self, backbone: str) -> str:
        """What a reader calls a backbone, its width said where it is not the usual one."""
        return backbone if self.width == USUAL_WIDTH else f"{backbone}, d {self.width}"

    def ours_ingest(self, file: Path) -> dict[str, Any]:
        """One run of P2Rec's ingest; see ingest_run.py."""
        return run_script(Path(sys.executable), HERE / "ingest_run.py", self._ingest_request(file))

    def peer_ingest(self, file: Path) -> dict[str, Any]:
        """One run of pandas; see peers/pandas_run.py."""
        return run_script(self.peer_interpreter, HERE / "peers" / "pandas_run.py", self._ingest_request(file))

    def _ingest_request(self, file: Path) -> dict[str, Any]:
        settings = IngestSettings(format=SourceFormat.RECBOLE).model_dump(mode="json")
        return {"interactions": str(file), "threads": self.threads, "settings": settings}


def encoder_of(backbone: str, width: int) -> EncoderSettings:
    """P2Rec's default shape of a backbone at another width; its inner width grows likewise."""
    usual = EncoderSettings(backbone=backbone)
    if usual.inner_size is None:
        return EncoderSettings(backbone=backbone, hidden_size=width)
    inner_size = usual.inner_size * width // usual.hidden_size
    return EncoderSettings(backbone=backbone, hidden_size=width, inner_size=inner_size)


def peer_model(encoder: EncoderSettings, caser_length: int) -> tuple[str, dict[str, float | int | None], int]:
    """The other side's name of a backbone, P2Rec's shape under its names, and the maximum length.

    Args:
        encoder: P2Rec's.
        caser_length: Maximum length for Caser.
    """
    backbone = encoder.backbone
    width, dropout = encoder.hidden_size, encoder.dropout
    if backbone == "sasrec":
        shape = {name: getattr(encoder, name) for name in ("hidden_size", "n_layers", "n_heads", "inner_size")}
        dropouts = {"hidden_dropout_prob": dropout, "attn_dropout_prob": dropout}
        return "SASRec", shape | dropouts, encoder.max_length
    if backbone == "gru4rec":
        options = {"embedding_size": width, "hidden_size": encoder.inner_size, "dropout_prob": dropout}
        return "GRU4Rec", options, encoder.max_length
    if backbone == "fmlp_rec":
        shape = {name: getattr(encoder, name) for name in ("hidden_size", "n_layers", "inner_size", "dropout")}
        return "FMLP-Rec", shape, encoder.max_length
    filters = {"nh": encoder.n_horizontal, "nv": encoder.n_vertical}
    return "Caser", {"embedding_size": width, **filters, "dropout_prob": dropout}, caser_length


def side_by_side(
    ours: Callable[[int], dict[str, Any]], peer: Callable[[int], dict[str, Any]], rounds: int, counts: Sequence[str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of runs in the order A B, B A, A B …

    Args:
        ours: P2Rec's run, given the number of its round.
        peer: The other side's, likewise.
        rounds: Pairs.
        counts: Names of the results that have to be equal.

    Raises:
        BenchmarkError: They are not.
    """
    pairs = []
    for number in range(rounds):
        if number % 2:
            their = peer(number)
            pairs.append((ours(number), their))
        else:
            pairs.append((ours(number), peer(number)))
    for our, their in pairs:
        check_same(our, their, counts)
    return pairs


def check_same(ours: dict[str, Any], peer: dict[str, Any], counts: Sequence[str]) -> None:
    """Make sure that both sides did the same.

    Args:
        ours: P2Rec's result.
        peer: The other side's.
        counts: Names of the results that have to be equal.

    Raises:
        BenchmarkError: They are not.
    """
    for count in counts:
        if ours[count] != peer[count]:
            raise BenchmarkError(
                f"P2Rec has {count} = {ours[count]} and the other side {peer[count]}: the two do not do the same. "
                "Use a data set whose users have at least four interactions."
            )


def ingest_part(sides: Sides, folder: Path, n_rows: int, rounds: int) -> Part:
    """Seconds and memory from a file of interactions to numbered, split sequences in memory.

    Args:
        sides: How either side is run.
        folder: For the file.
        n_rows: Interactions in it at the least, which are drawn.
        rounds: Pairs of runs.
    """
    file = drawn(folder, n_rows)
    pairs = side_by_side(lambda _: sides.ours_ingest(file), lambda _: sides.peer_ingest(file), rounds, INGEST_COUNTS)
    data = f"{pairs[0][0]['n_rows'] / 1e6:.3g} M drawn interactions"
    rate = pairs[0][0]["n_rows"] / statistics.median(ours["ingest_s"] for ours, _ in pairs)
    note = f"{rate / 1e6:.2f} M interactions a second; the same sequences; only P2Rec checks every row"
    rows = []
    for quantity, unit, name, scale, told in (
        ("ingest", "s", "ingest_s", 1, note),
        ("ingest, peak memory, whole process", "GiB", "peak_rss_bytes", GIB, ""),
    ):
        ours, peer = ([pair[side][name] / scale for pair in pairs] for side in (0, 1))
        rows.append(Row(quantity, data, "pandas", unit, peer, ours, note=told))
    return Part(rows, pairs)


def load_part(sides: Sides, data: Interactions, rounds: int) -> Part:
    """Seconds from the start of reading the file to the first batch of training."""
    pairs = side_by_side(
        lambda number: sides.ours(data, "sasrec", "load", seed=1 + number),
        lambda number: sides.peer(data, "sasrec", "load", seed=1 + number),
        rounds,
        COUNTS,
    )
    ours, peer = ([pair[side]["load_s"] for pair in pairs] for side in (0, 1))
    return Part([_row("load to first batch", data, sides.named("sasrec"), "s", peer, ours)], pairs)


def evaluate_part(sides: Sides, data: Interactions, rounds: int, repeats: int) -> Part:
    """Seconds of ranking all items for all users, model warm."""
    pairs = side_by_side(
        lambda number: sides.ours(data, "sasrec", "evaluate", seed=1 + number, repeats=repeats),
        lambda number: sides.peer(data, "sasrec", "evaluate", seed=1 + number, repeats=repeats),
        rounds,
        COUNTS,
    )
    ours, peer = ([statistics.median(pair[side]["evaluate_s"]) for pair in pairs] for side in (0, 1))
    return Part([_row("full-ranking evaluation", data, sides.named("sasrec"), "s", peer, ours)], pairs)


def train_part(sides: Sides, data: Interactions, backbone: str, rounds: int, epochs: int) -> Part:
    """Time to the other side's NDCG@10, time per epoch and peak memory of training.

    Runs alternate, ours first and last, and every run of the other side is set against the run of ours before it and
    the one after it: even one round has two ratios. Seeds differ from run to run.
    """
    pairs, runs = _around(
        lambda seed: sides.ours(data, backbone, "train", seed=seed),
        lambda seed: sides.peer(data, backbone, "train", seed=seed, epochs=epochs),
        rounds,
        backbone,
    )
    goals = [peer["curve"][-1]["ndcg"] for _, peer in pairs]
    reached = [seconds_to(ours, goal) for (ours, _), goal in zip(pairs, goals, strict=True)]
    theirs = [seconds_to(peer, goal) or 0.0 for (_, peer), goal in zip(pairs, goals, strict=True)]
    best = statistics.median(max(entry["ndcg"] for entry in ours["curve"]) for ours, _ in pairs)
    note = (
        f"{_other(backbone)}'s NDCG@10 after epoch {epochs} is {statistics.median(goals):.4f}, P2Rec's best {best:.4f}"
    )
    if sides.last_epoch is not None:
        note += f" of its first {sides.last_epoch} epochs"
    if backbone == "caser":
        window = EncoderSettings(backbone=backbone).window
        note += f"; RecBole's filters reach {sides.caser_length} items back, P2Rec's {window}"
    per_epoch = [[statistics.median(e["train_s"] for e in run["curve"]) for run in pair] for pair in pairs]
    whole = [[run["peak_rss_bytes"] / GIB for run in pair] for pair in pairs]
    beyond = [[(run["peak_rss_bytes"] - run["imported_rss_bytes"]) / GIB for run in pair] for pair in pairs]
    model = sides.named(backbone)
    wanted = epochs == WANTED_EPOCHS and sides.last_epoch is None
    rows = [
        _row(TIME_TO_NDCG, data, model, "s", theirs, reached, note=note, wanted=wanted),
        _row("training, per epoch", data, model, "s", [p for _, p in per_epoch], [o for o, _ in per_epoch]),
        _row(MEMORY, data, model, "GiB", [p for _, p in whole], [o for o, _ in whole]),
        _row("the same beyond imports", data, model, "GiB", [p for _, p in beyond], [o for o, _ in beyond]),
    ]
    return Part(rows, runs)


def pace_part(sides: Sides, data: Interactions, backbone: str, rounds: int) -> Part:
    """Time per epoch and peak memory of training, from some of the first epoch's steps on either side."""
    pairs, runs = _around(
        lambda seed: sides.ours(data, backbone, "pace", seed=seed),
        lambda seed: sides.peer(data, backbone, "pace", seed=seed),
        rounds,
        backbone,
    )
    ours, peer = ({name: statistics.median(pair[side][name] for pair in pairs) for name in STEPS} for side in (0, 1))
    note = (
        f"{ours['timed_steps']:.0f} of P2Rec's {ours['steps_per_epoch']:.0f} steps, "
        f"{peer['timed_steps']:.0f} of {_other(backbone)}'s {peer['steps_per_epoch']:.0f}"
    )
    epoch, memory = (
        [[pair[side][name] / scale for pair in pairs] for side in (0, 1)]
        for name, scale in (("epoch_s", 1), ("peak_rss_bytes", GIB))
    )
    model = sides.named(backbone)
    rows = [
        _row(PACE, data, model, "s", epoch[1], epoch[0], note=note),
        _row("peak memory of these steps, whole process", data, model, "GiB", memory[1], memory[0]),
    ]
    return Part(rows, runs)


def _around(
    ours: Callable[[int], dict[str, Any]], peer: Callable[[int], dict[str, Any]], rounds: int, backbone: str
) -> tuple[list[tuple[dict[str, Any], dict[str, Any]]], list[dict[str, Any]]]:
    """Runs in turn, ours first and last; every run of the other side with the run of ours before it and after it.

    Args:
        ours: P2Rec's run, given its seed, which differs from run to run.
        peer: The other side's, likewise.
        rounds: Runs of the other side.
        backbone: To tell of.

    Returns:
        The pairs, two for each run of the other side; all runs with their ``side``, in their order.

    Raises:
        BenchmarkError: The sides did not do the same.
    """
    runs = []
    for number in range(2 * rounds + 1):
        side = "peer" if number % 2 else "ours"
        print(f"  {backbone}: run {number + 1} of {2 * rounds + 1} ({side})", flush=True)
        runs.append({"side": side, **(peer if number % 2 else ours)(1 + number)})
    pairs = [(left, right) if left["side"] == "ours" else (right, left) for left, right in itertools.pairwise(runs)]
    for our, their in pairs:
        check_same(our, their, COUNTS)
    return pairs, runs


def _other(backbone: str) -> str:
    """What the other side of a backbone is called."""
    return "the plain program" if backbone in PEER_SCRIPTS else "RecBole"


def seconds_to(run: dict[str, Any], ndcg: float) -> float | None:
    """Seconds of training and validation until the validation NDCG@10 was at least ``ndcg``; None if never."""
    seconds = 0.0
    epoch: dict[str, float]
    for epoch in run["curve"]:
        seconds += epoch["train_s"] + epoch["validate_s"]
        if epoch["ndcg"] >= ndcg:
            return seconds
    return None


def _row(
    quantity: str,
    data: Interactions,
    model: str,
    unit: str,
    peer: list[float],
    ours: Sequence[float | None],
    *,
    note: str = "",
    wanted: bool = True,
) -> Row:
    """A row, with the ratio to reach where the data set is whole and ``wanted`` holds."""
    goal = WANTED.get((quantity, data.dataset, model)) if wanted and data.whole else None
    return Row(quantity, data.title, model, unit, peer, list(ours), goal, note)
