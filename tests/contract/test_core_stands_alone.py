"""The core runs where there is neither Prefect nor DuckDB nor PyArrow."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

BLOCKED = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"prefect", "duckdb", "pyarrow", "storage", "tasks", "flows", "deployments"}:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocker())
import p2rec_core
names = [m.name for m in pkgutil.walk_packages(p2rec_core.__path__, "p2rec_core.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

LIGHT = """
import sys
import p2rec_core.settings.pipeline, p2rec_core.errors, p2rec_core.progress, p2rec_core.language.identity
import tasks.dag, tasks.plan, tasks.stage, tasks.sources
print(*sorted(sys.modules))
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_core_module_is_imported_without_them():
    files = [p for p in (ROOT / "p2rec_core").rglob("*.py") if p.parent != ROOT / "p2rec_core" or p.stem != "__init__"]
    assert int(python(BLOCKED)) == len(files)


def test_looking_into_the_cache_loads_nothing_heavy():
    loaded = set(python(LIGHT).split())
    assert not loaded & {"torch", "transformers", "peft", "accelerate", "sklearn", "scipy", "prefect"}
