"""The measurement of cost: what is counted as timed, what is drawn, and what follows from it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from p2rec_core.language import cost
from p2rec_core.language.batching import Sequences
from p2rec_core.language.cost import CostResult, PhaseCost, measure_cost, spread_sample
from p2rec_core.language.e4srec import InstanceObjective
from p2rec_core.language.finetune import UserObjective
from p2rec_core.language.instances import next_item_instances
from p2rec_core.language.item_model import ItemLanguageModel
from p2rec_core.language.loading import LanguageModel
from p2rec_core.language.next_item_model import NextItemLanguageModel
from p2rec_core.language.preference_model import PreferenceLanguageModel
from p2rec_core.language.prompt import Prompt
from p2rec_core.sequences import RaggedSequences

MEASUREMENT: dict[str, Any] = {
    "sample_tokens": None,
    "step_tokens": None,
    "rounds": 3,
    "warmup_steps": 2,
    "item_batch_size": 16,
    "max_history": 4,
    "max_grad_norm": 1.0,
    "seed": 1,
    "device": torch.device("cpu"),
}


@pytest.fixture
def measured(
    language_model: LanguageModel, prompt: Prompt, users: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CostResult]:
    """Measure with a clock that shows the tokens read so far instead of seconds."""
    data = users(50)
    longer = Prompt(np.concatenate([prompt.instruction, prompt.instruction]), prompt.response)
    preference_model = PreferenceLanguageModel(language_model, prompt, *data.arrays[:2], 4)
    next_item_model = NextItemLanguageModel(language_model, longer, *data.arrays[:2])
    sequences = RaggedSequences(data.items, data.offsets)
    read = Sequences(data.items, data.offsets, 6)
    everyone = np.arange(50)
    by_user = UserObjective(preference_model, read, data.preferences, everyone, everyone[:0], 8, 256, 0)
    targets = next_item_instances(sequences, n_last_targets=5, max_history=4, drop_empty_history=True)
    by_instance = InstanceObjective(next_item_model, targets, 8, 256, epochs=1, max_steps=None, seed=0)
    clock = Counter[str]()
    plain_read = ItemLanguageModel.read

    def counting_read(self: Any, items: Any, lengths: Any, **values: Any) -> Any:
        clock["tokens"] += int(lengths.sum()) + len(lengths) * self.n_prompt_tokens
        return plain_read(self, items, lengths, **values)

    monkeypatch.setattr(ItemLanguageModel, "read", counting_read)
    monkeypatch.setattr(cost, "_now", lambda device: float(clock["tokens"]))

    def run(**changed: Any) -> CostResult:
        return measure_cost(by_user, by_instance, sequences, **MEASUREMENT | changed)

    return run


def test_a_whole_epoch_is_timed_once_and_the_warm_up_is_not(
    measured: Callable[..., CostResult], users: Callable[..., Any]
) -> None:
    result = measured()
    lengths = np.diff(users(50).offsets)
    targets = np.minimum(np.maximum(lengths - 1, 0), 5)
    histories = [min(m - 1 - i, 4) for m, n in zip(lengths, targets, strict=True) for i in range(n)]
    p2rec, e4srec, items, people = result.phases
    assert [(p.method, p.phase, p.level) for p in result.phases] == [
        ("p2rec", "training", "user"),
        ("e4srec", "training", "instance"),
        ("p2rec", "inference", "item"),
        ("e4srec", "inference", "user"),
    ]
    assert (p2rec.n_instances, p2rec.n_tokens) == (50, 50 * 7 + np.minimum(lengths, 6).sum())
    assert (e4srec.n_instances, e4srec.n_tokens) == (len(histories), len(histories) * 12 + sum(histories))
    assert (items.n_instances, items.n_tokens) == (60, 60 * 8)
    assert (people.n_instances, people.n_tokens) == (50, 50 * 12 + np.minimum(lengths, 4).sum())
    for phase in result.phases:
        assert phase.fraction == 1
        assert phase.seconds_measured == phase.n_tokens_measured == phase.n_tokens
        assert phase.seconds_per_epoch == pytest.approx(phase.n_tokens)
    assert result.ratios() == pytest.approx(
        {f"training_{unit}": e4srec.n_tokens / p2rec.n_tokens for unit in ("tokens", "seconds")}
        | {f"inference_{unit}": people.n_tokens / items.n_tokens for unit in ("tokens", "seconds")}
    )


def test_a_part_of_it_is_extrapolated(measured: Callable[..., CostResult]) -> None:
    told: list[str] = []
    result = measured(sample_tokens=150, rounds=2, progress=lambda done, total, message: told.append(message))
    for phase in result.phases:
        assert 0.1 < phase.fraction < 1
        assert phase.seconds_measured == phase.n_tokens_measured >= 120
        assert phase.seconds_per_token == pytest.approx(1)
        assert phase.seconds_per_epoch == pytest.approx(phase.n_tokens)
    order = [message.partition(":")[0] for message in told]
    assert order[4:] == order[3::-1]
    assert len(set(order)) == 4
    assert result.rounds == 2


def test_equal_tokens_in_a_step(measured: Callable[..., CostResult]) -> None:
    p2rec, e4srec, *_ = measured(step_tokens=100).phases
    assert p2rec.step_size == round(100 / (p2rec.n_tokens / p2rec.n_instances))
    assert e4srec.step_size == round(100 / (e4srec.n_tokens / e4srec.n_instances))
    assert e4srec.step_size < p2rec.step_size < 12
    own, *_ = measured().phases
    assert own.step_size == 8


def test_a_sample_has_all_lengths_in_proportion() -> None:
    lengths = np.repeat([50, 3, 7, 1], [100, 400, 300, 200])
    for seed in range(5):
        chosen = spread_sample(lengths, 100, np.random.default_rng(seed))
        assert len(set(chosen.tolist())) == 100
        counts = Counter(lengths[chosen].tolist())
        assert all(abs(counts[n] - share) <= 1 for n, share in {50: 10, 3: 40, 7: 30, 1: 20}.items())
    assert sorted(spread_sample(lengths, 1000, np.random.default_rng(0))) == list(range(1000))


def test_the_clock_is_monotonic() -> None:
    device = torch.device("cpu")
    assert cost._now(device) <= cost._now(device)
    assert PhaseCost("p2rec", "training", "user", 1, 10, 100, 50, 2.0).seconds_per_epoch == 4.0
