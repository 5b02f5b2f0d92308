"""docs/how-to/add-a-backbone.md, done as it says."""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import p2rec_core.backbones
from flows.cli import app
from p2rec_core.backbones.registry import ENCODERS, Entry
from p2rec_core.errors import SettingsError
from p2rec_core.ranking import rank_metrics, ranks_of_users
from p2rec_core.recommender import recommender_scorer
from p2rec_core.settings.pipeline import describe_settings, pipeline_settings
from p2rec_core.training.recommender import EncoderShape, load_recommender, train_recommender

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/add-a-backbone.md").read_text(encoding="utf-8")
ENCODER, ENTRY, TEST = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
CPU = torch.device("cpu")


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Entry]]:
    """The page's backbone, in a file beside the others and in the registry."""
    ((name, entry),) = eval(f"{{{ENTRY}}}", {"Entry": Entry}).items()
    (tmp_path / f"{entry.module.rpartition('.')[2]}.py").write_text(ENCODER, encoding="utf-8")
    monkeypatch.setattr(p2rec_core.backbones, "__path__", [*p2rec_core.backbones.__path__, str(tmp_path)])
    monkeypatch.setitem(ENCODERS, name, entry)
    importlib.invalidate_caches()
    yield name, entry
    sys.modules.pop(entry.module, None)


def test_the_page_names_the_files(added):
    _, entry = added
    assert f"`{entry.module.replace('.', '/')}.py`" in PAGE
    for path in re.findall(r"`((?:p2rec_core|tests)/[\w/.]+)`", PAGE):
        assert (ROOT / path).exists() or path.endswith("causal_conv.py"), path


def test_its_settings_are_known(added):
    name, entry = added
    encoder = pipeline_settings(
        dataset="sample", assignments=[f"recommender.encoder.backbone={name}", "recommender.encoder.window=4"]
    ).recommender.encoder
    assert encoder.options() == {**entry.defaults, "window": 4}
    assert set(inspect.signature(getattr(importlib.import_module(entry.module), entry.name)).parameters) == set(
        entry.defaults
    )
    with pytest.raises(SettingsError, match=f"n_heads = 2: {name} does not read this; it reads dropout, hidden_size"):
        pipeline_settings(
            dataset="beauty", assignments=[f"backbone.encoder.backbone={name}", "backbone.encoder.n_heads=2"]
        )
    meaning = {setting: text for setting, _, text in describe_settings(pipeline_settings(dataset="beauty"))}
    assert name in meaning["recommender.encoder.backbone"]
    assert meaning["recommender.encoder.window"].endswith(f"Read by {', '.join(sorted(('caser', name)))}.")


def test_its_test_passes(added):
    namespace: dict[str, object] = {}
    exec(compile(TEST, "add-a-backbone.md", "exec"), namespace)
    tests = [function for name, function in namespace.items() if name.startswith("test_")]
    assert len(tests) == 1
    tests[0]()


@pytest.mark.parametrize("shuffled", [False, True])
def test_it_learns_what_there_is(added, cycles, train_settings, shuffled):
    name, entry = added
    sequences, targets = cycles(150, 20, shuffled=shuffled)
    shape = EncoderShape(name, {**entry.defaults, "hidden_size": 16, "dropout": 0.0, "max_length": 5})
    trained = train_recommender(
        sequences, None, n_items=20, encoder=shape, training=train_settings(patience=None), device=CPU
    )
    model = load_recommender(trained.tensors, shape, CPU)
    scorer = recommender_scorer(model, sequences, max_length=shape.max_length, device=CPU)
    keep = ranks_of_users(scorer, targets, seen=("keep",))["keep"]
    found = rank_metrics(keep, (1,))["HR", 1]
    assert found < 0.11 if shuffled else found > 0.95


def test_its_code_is_in_its_keys(added, tmp_path):
    from tasks import fingerprint

    _, entry = added
    before = fingerprint.code_fingerprint("tasks.recommender", entry.module)
    alone = fingerprint.code_fingerprint("tasks.recommender")
    path = tmp_path / f"{entry.module.rpartition('.')[2]}.py"
    path.write_text(ENCODER.replace("F.relu", "F.gelu"), encoding="utf-8")
    fingerprint._read.cache_clear()
    assert fingerprint.code_fingerprint("tasks.recommender", entry.module) != before
    assert fingerprint.code_fingerprint("tasks.recommender") == alone
    fingerprint._read.cache_clear()


def test_its_commands_can_be_parsed():
    commands = [line.split("#")[0].split() for line in PAGE.splitlines() if line.startswith("    p2rec ")]
    assert len(commands) == 3
    for command in commands:
        _, bound, _ = app.parse_args(command[1:], exit_on_error=False, print_error=False)
        assert bound.arguments is not None
