"""The fingerprint of a stage's code: what changes it, what does not, and which modules it covers."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2rec_core.backbones.registry import ENCODERS
from p2rec_core.settings.pipeline import EvaluationSettings
from p2rec_core.settings.sequence_model import EncoderSettings, FusionSettings, RecommenderSettings, Variant
from storage.artefacts import ArtefactRef
from tasks import fingerprint
from tasks.evaluation import evaluation_call
from tasks.fingerprint import code_fingerprint, normalised_code
from tasks.recommender import recommender_call
from tasks.stage import StageCall

ROOT = Path(__file__).parents[2]
STAGE_MODULES = (
    "tasks.ingest",
    "tasks.recommender",
    "tasks.clusters",
    "tasks.preferences",
    "tasks.text",
    "tasks.finetune",
    "tasks.knowledge",
    "tasks.evaluation",
    "tasks.e4srec",
    "tasks.e4srec_evaluation",
    "tasks.cost",
    "tasks.probes",
    "tasks.refresh.changes",
    "tasks.refresh.clusters",
    "tasks.refresh.comparison",
    "tasks.refresh.ingest",
    "tasks.refresh.knowledge",
    "tasks.refresh.recommender",
    "tasks.refresh.text",
)
E4SREC = {"tasks.e4srec", "tasks.e4srec_evaluation", "tasks.cost"}
"""What trains or ranks like a recommender, with a language model in it."""
RECOMMENDER = {"tasks.recommender", "tasks.refresh.recommender", "tasks.probes"}
"""What prepares knowledge as an item table is given it."""
KNOWLEDGE = {"tasks.knowledge", "tasks.refresh.knowledge"}
RANKING = {"tasks.evaluation", "tasks.refresh.comparison"}

CODE = '''"""A module."""

from p2rec_core.sequences import RaggedSequences

LIMIT = 3
"""What it means."""


class Thing:
    """A thing."""

    size: int = 1
    """Its size."""

    def twice(self, x: int) -> int:
        """Double."""
        # by adding
        return x + x
'''

SAME = {
    "module docstring": CODE.replace("A module.", "Another text\nover two lines."),
    "no docstrings": CODE.replace('"""A module."""\n', "").replace('        """Double."""\n', ""),
    "attribute's description": CODE.replace("What it means.", "Changed."),
    "comment": CODE.replace("# by adding", "# in another way"),
    "no comment": CODE.replace("        # by adding\n", ""),
    "blank lines": CODE.replace("\n\n", "\n\n\n\n"),
    "layout": CODE.replace("return x + x", "return (\n            x\n            + x\n        )"),
    "quotes of a docstring": CODE.replace('"""A thing."""', "'A thing.'"),
}
OTHER = {
    "operator": CODE.replace("x + x", "x * x"),
    "constant": CODE.replace("LIMIT = 3", "LIMIT = 4"),
    "default": CODE.replace("size: int = 1", "size: int = 2"),
    "name": CODE.replace("twice", "double"),
    "statement": CODE.replace("return x + x", "x = x\n        return x + x"),
    "import": CODE.replace("RaggedSequences", "Windows"),
    "a text that is used": CODE + '\nNAME = "a"\n',
}


@pytest.mark.parametrize("edit", SAME)
def test_comments_docstrings_and_layout_say_nothing(edit):
    assert SAME[edit] != CODE
    assert normalised_code(SAME[edit], "m") == normalised_code(CODE, "m")


@pytest.mark.parametrize("edit", OTHER)
def test_code_does(edit):
    assert normalised_code(OTHER[edit], "m") != normalised_code(CODE, "m")


def test_no_version_of_python_adds_fields_of_its_own():
    """Before 3.13 ``ast.dump`` shows empty fields, and 3.12 has new ones: the keys of a store would go with them."""
    assert normalised_code("def f(x, /): return g(x)\n", "storage.ingest.x")[0] == (
        "Module(body=[FunctionDef(name='f', args=arguments(posonlyargs=[arg(arg='x')]), body=[Return(value=Call("
        "func=Name(id='g', ctx=Load()), args=[Name(id='x', ctx=Load())]))])])"
    )


def test_texts_that_are_used_count():
    one, other = (normalised_code(CODE + f'\nNAME = "{text}"\n', "m") for text in "ab")
    assert one != other


def test_imports_are_followed_wherever_they_stand():
    code = """
import p2rec_core.ranking
from p2rec_core import fusion, errors
from p2rec_core.training import loop
from p2rec_core.settings.data import IngestSettings
import numpy, prefect, tasks.stage

def late():
    from p2rec_core.clustering import cluster_items
    from storage.ingest.source import sha256_of
    from storage.artefacts import Store
"""
    _, imported = normalised_code(code, "m")
    assert set(imported) == {
        "p2rec_core",
        "p2rec_core.ranking",
        "p2rec_core.fusion",
        "p2rec_core.training",
        "p2rec_core.training.loop",
        "p2rec_core.clustering",
        "storage.ingest.source",
    }


@pytest.fixture
def closure(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], set[str]]:
    """The modules that a fingerprint is made of."""
    read = fingerprint._read

    def closure(module: str) -> set[str]:
        names: set[str] = set()

        def recording(name: str):
            names.add(name)
            return read(name)

        with monkeypatch.context() as patch:
            patch.setattr(fingerprint, "_read", recording)
            code_fingerprint(module)
        return names

    return closure


@pytest.mark.parametrize(
    ("module", "covered", "left_out"),
    [
        (
            "tasks.recommender",
            {
                "p2rec_core.objectives",
                "p2rec_core.training.loop",
                "p2rec_core.training.checkpoint",
                "p2rec_core.backbones.base",
                "p2rec_core.fusion",
                "p2rec_core.sequences",
                "p2rec_core.ranking",
                "p2rec_core.runtime",
                "tasks.arrays",
            },
            {
                "p2rec_core.language",
                "p2rec_core.clustering",
                "p2rec_core.preferences",
                "storage",
                # found by name: a call adds the one that it uses
                *(entry.module for entry in ENCODERS.values()),
            },
        ),
        ("tasks.clusters", {"p2rec_core.clustering", "tasks.arrays"}, {"p2rec_core.training", "p2rec_core.language"}),
        ("tasks.preferences", {"p2rec_core.preferences"}, {"p2rec_core.training", "p2rec_core.clustering"}),
        ("tasks.ingest", {"storage.ingest.pipeline", "storage.ingest.kcore"}, {"p2rec_core"}),
        (
            "tasks.finetune",
            {"p2rec_core.language.finetune", "p2rec_core.language.prompt", "p2rec_core.training.loop"},
            {"p2rec_core.backbones", "p2rec_core.fusion", "p2rec_core.recommender", "p2rec_core.clustering"},
        ),
        (
            "tasks.knowledge",
            {"p2rec_core.language.knowledge", "p2rec_core.language.preference_model"},
            {"p2rec_core.backbones", "p2rec_core.fusion", "p2rec_core.recommender"},
        ),
        ("tasks.evaluation", {"p2rec_core.evaluation", "p2rec_core.ranking"}, {"p2rec_core.language"}),
        (
            "tasks.probes",
            {
                "p2rec_core.probes",
                "p2rec_core.ranking",
                "p2rec_core.whitening",
                "p2rec_core.analysis.groups",
                "storage.ingest.item_category",
                "tasks.recommender",
            },
            {"p2rec_core.language", "p2rec_core.analysis.tables", "p2rec_core.analysis.comparison"},
        ),
    ],
)
def test_a_fingerprint_covers_what_computes(closure, module, covered, left_out):
    names = closure(module)
    assert module in names
    assert covered <= names
    everywhere = {"p2rec_core.errors", "p2rec_core.progress", "p2rec_core.settings", "tasks.stage", "tasks.plan"}
    everywhere.add("p2rec_core.backbones.registry")
    for package in left_out | everywhere:
        assert not [name for name in names if name == package or name.startswith(package + ".")], package


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], dict[str, str]]]:
    """Replace text in a copy of a module's source and return the fingerprints of all stages."""
    for package in ("p2rec_core", "storage", "tasks"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    find = fingerprint.source_path

    def copied(module: str) -> Path | None:
        path = find(module)
        return path if path is None or not path.is_relative_to(ROOT) else tmp_path / path.relative_to(ROOT)

    monkeypatch.setattr(fingerprint, "source_path", copied)

    def edit(name: str, old: str, new: str) -> dict[str, str]:
        if name:
            path = tmp_path / name
            text = path.read_text(encoding="utf-8")
            assert old in text
            path.write_text(text.replace(old, new), encoding="utf-8")
        fingerprint._read.cache_clear()
        return {module: code_fingerprint(module) for module in STAGE_MODULES}

    yield edit
    fingerprint._read.cache_clear()


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        (
            "p2rec_core/objectives.py",
            "_CACHED_ITEMS = 1024",
            "_CACHED_ITEMS = 512",
            {*RECOMMENDER, *RANKING, *E4SREC},
        ),
        (
            "p2rec_core/clustering.py",
            "1e-12",
            "1e-11",
            {
                "tasks.clusters",
                *(f"tasks.refresh.{name}" for name in ("changes", "clusters", "knowledge", "recommender")),
            },
        ),
        ("p2rec_core/language/agreement.py", "import numpy as np", "import numpy", KNOWLEDGE),
        ("tasks/knowledge.py", "def ", "async def ", KNOWLEDGE),
        ("tasks/text.py", "def ", "async def ", {"tasks.text", "tasks.refresh.text"}),
        ("storage/ingest/item_text.py", "def ", "async def ", {"tasks.text", "tasks.refresh.text", "tasks.probes"}),
        (
            "p2rec_core/training/loop.py",
            "bad_epochs: int = 0",
            "bad_epochs: int = 1",
            {*RECOMMENDER, "tasks.finetune", *RANKING, *E4SREC},
        ),
        (
            "p2rec_core/preferences.py",
            "np.maximum(",
            "np.minimum(",
            {"tasks.preferences", "tasks.finetune", "tasks.cost"},
        ),
        ("storage/ingest/kcore.py", "def ", "async def ", {"tasks.ingest", "tasks.refresh.ingest"}),
        ("storage/ingest/item_category.py", "header[1:]", "header", {"tasks.probes"}),
        ("p2rec_core/probes.py", "N_LATEST = 5", "N_LATEST = 6", {"tasks.probes"}),
        ("p2rec_core/analysis/groups.py", "N_WARM_GROUPS = 4", "N_WARM_GROUPS = 5", {"tasks.probes"}),
        ("p2rec_core/analysis/tables.py", "float(value)", "value", set()),
        ("tasks/recommender.py", "0x6E6F697365", "0x6E6F697366", RECOMMENDER),
        ("p2rec_core/objectives.py", '"""Cross-entropy over', '"""Crossed entropy over', set()),
        ("p2rec_core/training/loop.py", "import math\n", "# first\n\n\nimport math\n", set()),
        ("p2rec_core/errors.py", "exit_status = 3", "exit_status = 4", set()),
        ("p2rec_core/settings/clustering.py", "Field(50", "Field(51", set()),
        ("tasks/stage.py", "time.monotonic()", "time.time()", set()),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)
def test_an_edit_changes_the_stages_that_it_is_computed_by(edited, name, old, new, changed):
    before = edited("", "", "")
    after = edited(name, old, new)
    found = {module for module in STAGE_MODULES if before[module] != after[module]}
    assert found == changed


def encoder_calls() -> dict[str, StageCall]:
    """Training and evaluation of every backbone."""
    files = ("sequences", "items", "validation", "test", "model")
    ref = ArtefactRef("ingest", "0" * 32, dict.fromkeys(files, "0" * 64))
    calls = {}
    for backbone in ENCODERS:
        settings = RecommenderSettings(encoder=EncoderSettings(backbone=backbone))
        calls[f"train {backbone}"] = recommender_call(settings, Variant.BASE, FusionSettings(), ingest=ref)
        calls[f"rank {backbone}"] = evaluation_call(EvaluationSettings(), settings, Variant.BASE, ingest=ref, model=ref)
    return calls


ALL_ENCODERS = set(ENCODERS)


@pytest.mark.parametrize(
    ("name", "old", "new", "changed"),
    [
        ("p2rec_core/backbones/caser.py", "self.window - 1", "self.window - 2", {"caser"}),
        ("p2rec_core/backbones/sasrec.py", "is_causal=True", "is_causal=False", {"sasrec"}),
        ("p2rec_core/backbones/gru4rec.py", "bias=False", "bias=True", {"gru4rec"}),
        ("p2rec_core/backbones/fmlp_rec.py", 'norm="ortho"', 'norm="forward"', {"fmlp_rec"}),
        ("p2rec_core/backbones/caser.py", '"""Caser: ', '"""Convolutions: ', set()),
        ("p2rec_core/backbones/base.py", "clamp_min(0)", "clamp_min(1)", ALL_ENCODERS),
        ("p2rec_core/backbones/base.py", "INIT_STD = 0.02", "INIT_STD = 0.03", ALL_ENCODERS),
        # a further encoder leaves the artefacts of the others alone; a default is in the key of its own
        ("p2rec_core/backbones/registry.py", '"sasrec": Entry(', '"other": Entry(', set()),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)
def test_an_edit_of_an_encoder_changes_what_uses_it(edited, name, old, new, changed):
    calls = encoder_calls()
    edited("", "", "")
    before = {title: call.key() for title, call in calls.items()}
    assert len(set(before.values())) == len(before)
    edited(name, old, new)
    found = {title for title, call in calls.items() if before[title] != call.key()}
    assert found == {f"{verb} {backbone}" for backbone in changed for verb in ("train", "rank")}


def test_more_modules_are_hashed_in_any_order():
    one = code_fingerprint("tasks.clusters", "p2rec_core.backbones.caser", "p2rec_core.backbones.sasrec")
    assert one == code_fingerprint("p2rec_core.backbones.sasrec", "tasks.clusters", "p2rec_core.backbones.caser")
    assert one != code_fingerprint("tasks.clusters", "p2rec_core.backbones.caser")


def test_a_copy_elsewhere_has_the_same_fingerprints(edited, monkeypatch):
    in_the_copy = edited("", "", "")
    monkeypatch.undo()
    fingerprint._read.cache_clear()
    assert in_the_copy == {module: code_fingerprint(module) for module in STAGE_MODULES}


def test_a_module_that_is_not_there():
    with pytest.raises(ModuleNotFoundError, match=r"No source of tasks\.nothing"):
        code_fingerprint("tasks.nothing")
