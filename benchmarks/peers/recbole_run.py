"""One measurement of RecBole, in an environment of its own.

    python recbole_run.py REQUEST.json RESULT.json

The request has ``task`` (load, evaluate, train or pace), ``data_path`` and ``dataset`` (RecBole's names of an atomic
file), ``model``, ``model_options``, ``max_length``, ``train_batch_size``, ``threads``, ``seed``, ``epochs``,
``repeats`` and ``pace_s``. Whatever is not named there is RecBole's default. Run it in a directory that may be thrown
away: RecBole writes logs.

Protocol: leave-one-out by time, all items ranked, cross-entropy over the catalogue. History items stay eligible:
RecBole's loader of full rankings hands out no history for sequential models, and its trainer masks only what it is
handed. That is ``seen = keep`` of P2Rec. Both are checked here: on the loader, and on the metric, which is computed
again from the model's scores.

RecBole itself runs unpatched; its trainer is only given a clock.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole import __version__ as recbole_version
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed

sys.path.append(str(Path(__file__).parents[1]))
import clock
from memory import peak_rss_bytes
from ndcg import CUTOFF, gains
from pace import Pace, SomeSteps, paced

METRIC = "ndcg@10"
DECIMALS = 8
TOLERANCE = 1e-6
"""Largest difference of NDCG@10 from the one computed again: rounding, and ties, which RecBole breaks anyhow."""


class TimedTrainer(Trainer):
    """RecBole's trainer, which writes down what each epoch took.

    Attributes:
        curve: One entry per epoch: seconds of training, seconds of validation, validation NDCG@10.
    """

    def __init__(self, config: Config, model: torch.nn.Module) -> None:
        super().__init__(config, model)
        self.curve: list[dict[str, float]] = []
        self.train_s = 0.0

    def _train_epoch(self, *args: Any, **kwargs: Any) -> Any:
        begun = clock.now()
        loss = super()._train_epoch(*args, **kwargs)
        self.train_s = clock.now() - begun
        return loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        begun = clock.now()
        score, result = super()._valid_epoch(*args, **kwargs)
        validate_s = clock.now() - begun
        self.curve.append({"train_s": self.train_s, "validate_s": validate_s, "ndcg": float(result[METRIC])})
        print(f"epoch {len(self.curve)}: {self.curve[-1]}", flush=True)
        return score, result


def configuration(request: dict[str, Any]) -> Config:
    """RecBole's configuration for a request."""
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    return Config(
        model=request["model"],
        dataset=request["dataset"],
        config_dict={
            **request["model_options"],
            "data_path": request["data_path"],
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": request["max_length"],
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "train_batch_size": request["train_batch_size"],
            "epochs": request["epochs"],
            "stopping_step": request["epochs"],
            "eval_args": {
                "split": {"LS": "valid_and_test"},
                "order": "TO",
                "group_by": "user",
                "mode": "full",
            },
            "metrics": ["NDCG", "Hit"],
            "topk": [CUTOFF],
            "valid_metric": "NDCG@10",
            "metric_decimal_place": DECIMALS,
            "seed": request["seed"],
            "use_gpu": False,
            "show_progress": False,
        },
    )


@torch.no_grad()
def ndcg_again(trainer: Trainer, loader: Any) -> float:
    """NDCG@10 by P2Rec's definition, every item but PAD eligible, from the scores of RecBole's model.

    Args:
        trainer: Has the model.
        loader: Full rankings.

    Raises:
        RuntimeError: The loader hands out history, which the trainer then masks.
    """
    trainer.model.eval()
    found: list[float] = []
    for interaction, history, _, targets in loader:
        if history is not None:
            raise RuntimeError("RecBole masks history here: its NDCG@10 is not the one of seen = keep.")
        scores = trainer.model.full_sort_predict(interaction.to(trainer.device)).view(len(targets), -1)
        scores[:, 0] = -torch.inf
        found += gains(scores, targets).tolist()
    return float(np.mean(found))


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request says.

    Raises:
        RuntimeError: RecBole's protocol is not the one that the comparison is about.
    """
    imported = peak_rss_bytes()
    torch.set_num_threads(request["threads"])
    config = configuration(request)
    init_seed(config["seed"], config["reproducibility"])

    begun = clock.now()
    dataset = create_dataset(config)
    training, validation, _ = data_preparation(config, dataset)
    next(iter(training))
    load_s = clock.now() - begun

    result: dict[str, Any] = {
        "versions": {"recbole": recbole_version, "torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
        "n_users": dataset.user_num - 1,  # RecBole counts PAD
        "n_items": dataset.item_num - 1,
        "n_validated": len(validation.dataset),
        "n_examples": len(training.dataset),
        "load_s": load_s,
        "imported_rss_bytes": imported,
    }
    if request["task"] == "load":
        return result

    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, training.dataset).to(config["device"])
    trainer = TimedTrainer(config, model)
    if request["task"] == "pace":
        pace = Pace(request["pace_s"])
        trainer._train_epoch(SomeSteps(training, pace), 0)
        return result | paced(pace, len(training)) | {"peak_rss_bytes": peak_rss_bytes()}
    if request["task"] == "train":
        trainer.fit(training, validation, verbose=False, saved=False, show_progress=False)
        result["curve"] = trainer.curve
        ndcg = trainer.curve[-1]["ndcg"]
    else:
        trainer.eval_collector.data_collect(training)
        seconds = []
        for _ in range(request["repeats"] + 1):  # the first one warms up
            begun = clock.now()
            ndcg = trainer.evaluate(validation, load_best_model=False)[METRIC]
            seconds.append(clock.now() - begun)
        result["evaluate_s"] = seconds[1:]
    result["peak_rss_bytes"] = peak_rss_bytes()
    again = ndcg_again(trainer, validation)
    if abs(again - ndcg) > TOLERANCE:
        raise RuntimeError(f"RecBole's NDCG@10 is {ndcg}, but {again} when computed under seen = keep.")
    result["ndcg_again"] = again
    return result


def main() -> None:
    """Read the request, measure, write the result."""
    request_file, result_file = map(Path, sys.argv[1:3])
    result_file.write_text(json.dumps(measured(json.loads(request_file.read_text()))))


if __name__ == "__main__":
    main()
