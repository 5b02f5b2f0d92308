"""Every command of the README and the pages is run, page by page, in the order in which it stands there.

Small settings are appended where a command trains, and ``beauty`` and ``table2``, whose data may not be there, are
replaced by the embedded sample and its experiment. What is run by other tests is named with them.
"""

import contextlib
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import MissingArgumentError

import p2rec_core.backbones
from flows.cli import app
from flows.report import RunReport
from p2rec_core.backbones.registry import ENCODERS, Entry
from p2rec_core.errors import ExtraMissing, P2RecError, RefreshRefused, SettingsError
from storage.sample import generate_sample

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {
    "docs/how-to/recommend.md": "tests/flows/test_cli_outputs.py",
    "docs/tutorial.md": "tests/docs/test_newcomer.py",
}
"""Pages whose commands another test runs, in whole."""

SERVED = "tests/deployments/served.py"
"""Runs ``p2rec serve``."""

COMMAND = re.compile(r"^ {4,}((?:[A-Z_0-9]+=\S+ )*(?:p2rec|cp|mkdir|python -c) .*)$", re.MULTILINE)
IN_A_SENTENCE = re.compile(r"`p2rec ([^`…]+)`")
BUCKET = "s3://models/p2rec"
"""Of the pages; a directory takes its place (``tests/storage/test_remote.py`` has a server)."""
TRAINS = ("run", "stage", "refresh", "show", "settings")
GATE = ["refresh.max_hold_out_drop=1.0", "refresh.max_metric_drop=1.0", "refresh.min_coverage=0.0"]
"""In few epochs nothing is learned that a metric could stand for."""
WITH_A_FILE = {"refresh-nightly.md": "clicks.toml", "compare.md": "compare.toml"}
"""Pages that show a file whole which their commands read."""
SAMPLES_CLUSTERS = ["clusters.n_clusters=12", "clusters.finer=[60]"]


def commands(page: Path) -> list[str]:
    """The indented lines of a page that are commands, continued ones joined, comments cut off."""
    text = page.read_text(encoding="utf-8")
    joined = re.sub(r'"SELECT\b[^"]*"', lambda m: " ".join(m.group(0).split()), text)
    return [re.sub(r"\s+#\s.*", "", found) for found in COMMAND.findall(joined)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_COMMANDS = [page for page in PAGES if commands(page) and name_of(page) not in ELSEWHERE]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_a_pages_commands_can_be_parsed(page: Path) -> None:
    for command in commands(page):
        words = [word for word in shlex.split(command) if not re.match(r"[A-Z_0-9]+=", word)]
        if words[0] == "p2rec":
            _, bound, _ = app.parse_args(words[1 : words.index(">") if ">" in words else None], exit_on_error=False)
            assert bound.arguments is not None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_within_sentences_and_tables_can_be_parsed(page: Path) -> None:
    for command in IN_A_SENTENCE.findall(page.read_text(encoding="utf-8")):
        # a sentence may name an option without its value
        with contextlib.suppress(MissingArgumentError):
            app.parse_args(shlex.split(command), exit_on_error=False, print_error=False)


def test_there_are_commands_to_parse() -> None:
    assert IN_A_SENTENCE.findall((ROOT / "docs/results/README.md").read_text(encoding="utf-8"))
    assert len([command for command in commands(ROOT / "README.md") if command.startswith("p2rec ")]) > 10


def test_what_is_run_elsewhere_is_run_there() -> None:
    for page, test in ELSEWHERE.items():
        assert commands(ROOT / page)
        assert f'"{Path(page).name}"' in (ROOT / test).read_text(encoding="utf-8")
    assert '"serve"' in (ROOT / SERVED).read_text(encoding="utf-8")


@pytest.fixture
def place(first_run: tuple[Path, RunReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a filled store and the files that pages speak of."""
    shutil.copytree(first_run[0], tmp_path / ".p2rec")
    monkeypatch.chdir(tmp_path)
    sample = generate_sample(n_users=300, n_items=120, n_categories=6, seed=3)
    rows = sorted(
        (1_700_000_000 + 3600 * n + user, name, sample.item_ids[item])
        for user, (name, items) in enumerate(zip(sample.user_ids, sample.sequences, strict=True))
        for n, item in enumerate(items)
    )
    Path("clicks.csv").write_text("visitor,sku,timestamp\n" + "".join(f"{u},{i},{t}\n" for t, u, i in rows))
    Path("sku.tsv").write_text("sku\twords\n" + "".join(f"{i}\tthing {i}\n" for i in sample.item_ids))
    return tmp_path


@pytest.fixture
def causal_conv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backbone of docs/how-to/add-a-backbone.md."""
    page = (ROOT / "docs/how-to/add-a-backbone.md").read_text(encoding="utf-8")
    code, entry, _ = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ((name, made),) = eval(f"{{{entry}}}", {"Entry": Entry}).items()
    folder = tmp_path / "backbones"
    folder.mkdir()
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(p2rec_core.backbones, "__path__", [*p2rec_core.backbones.__path__, str(folder)])
    monkeypatch.setitem(ENCODERS, name, made)
    importlib.invalidate_caches()
    yield
    sys.modules.pop(made.module, None)


def save_a_model(directory: Path) -> None:
    from p2rec_core.language.loading import load_language_model

    loaded = load_language_model("random-llama-tiny")
    loaded.model.save_pretrained(directory)
    loaded.tokenizer.save_pretrained(directory)


def adapted(command: str, small: list[str]) -> list[str]:
    """The words of a command on the sample, with small settings where it trains."""
    words = shlex.split(command)
    swaps = {
        "beauty": "sample",
        "table2": "sample",
        "yelp": "sample",
        "/data/p2rec": "data/p2rec",
        "http://127.0.0.1:5000": "sqlite:///m.db",
    }
    words = [swaps.get(word, word).replace(BUCKET, f"file://{Path.cwd()}/bucket") for word in words]
    if words[0] != "p2rec":
        return words
    chosen = [*SAMPLES_CLUSTERS, *small, *(GATE if words[1] == "refresh" else ())]
    given = [words[n + 1].partition("=")[0] for n, word in enumerate(words) if word == "--set"]
    if "causal_conv" in command:
        chosen = [a for a in chosen if "inner_size" not in a]
    extra = [word for a in chosen if a.partition("=")[0] not in given for word in ("--set", a)]
    trains = words[1] in TRAINS and (words[1] != "show" or "--plan" in words) and "--snapshot" not in words
    if trains or words[1:3] == ["experiment", "run"] or words[1:3] == ["experiment", "show"]:
        words += extra
    needs_gpu = "run" in words[1:3] and any(word == "gpu" or word.startswith("runtime.device=cuda") for word in words)
    if needs_gpu and "--dry-run" not in words:
        words.append("--dry-run")  # there may be none
    return words


def run(words: list[str]) -> str | None:
    """Run a command; the name of the error that may come on small data or without an extra, else None."""
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], check=True, timeout=120)
    elif words[0] != "p2rec":
        subprocess.run(words, check=True, timeout=60)
    elif ">" in words:
        *words, _, path = words
        with Path(path).open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            return run(words)
    else:
        try:
            app(words[1:], result_action="return_value")
        except (RefreshRefused, ExtraMissing) as error:
            return type(error).__name__
        except SettingsError as error:
            if "--dry-run" not in words or "sees no CUDA GPU" not in error.problem:
                raise  # there may be none here
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
# --recipe paper shares the artefact's memory with a buffer that nothing writes to
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_a_pages_commands_work(
    page: Path, place: Path, small_assignments: list[str], request: pytest.FixtureRequest
) -> None:
    if page.name == "add-a-backbone.md":
        request.getfixturevalue("causal_conv")
    if page.name == "use-another-language-model.md":
        save_a_model(place / "my-model")
    if page.name == "track.md":  # an experiment that was run
        run(adapted("p2rec experiment run sample --arms base --seeds 1", small_assignments))
    if name := WITH_A_FILE.get(page.name):
        content = re.search(rf"`{name}`:\n\n((?:    .*\n|\n)+)", page.read_text(encoding="utf-8"))
        assert content is not None
        Path(name).write_text(re.sub(r"^    ", "", content.group(1), flags=re.MULTILINE))
    for command in commands(page):
        words = adapted(command, small_assignments)
        if "serve" in words:
            continue
        try:
            refused = run(words)
        except P2RecError as error:
            pytest.fail(f"{command}: {error}")
        assert refused is None or words[1] in ("refresh", "track"), command
