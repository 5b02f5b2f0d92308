"""Nothing that runs what it reads, and nothing that the fingerprint of the code cannot see."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("p2rec_core", "storage", "tasks", "flows", "deployments")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.save",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
}
# these read a local repository with trust_remote_code=False, which is the default too; True is what is banned
KEYWORDS = {"trust_remote_code": True, "allow_pickle": True, "shell": True, "weights_only": False}


def violations(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.level:
                yield f"line {node.lineno}: a relative import, which the fingerprint does not follow"
        else:
            names = []
        for name in names:
            if name.split(".")[0] in MODULES:
                yield f"line {node.lineno}: import of {name}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                yield f"line {node.lineno}: {called}(...)"
            for keyword in node.keywords:
                if (
                    isinstance(keyword.value, ast.Constant)
                    and KEYWORDS.get(keyword.arg or "", ...) is keyword.value.value
                ):
                    yield f"line {node.lineno}: {keyword.arg}={keyword.value.value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_banned_code(path):
    assert list(violations(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import dump",
        "import yaml",
        "def f():\n    import cloudpickle",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "exec('1')",
        "__import__('os')",
        "from . import sibling",
        "np.load(p, allow_pickle=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "run('x', shell=True)",
    ],
)
def test_the_check_sees_it(code):
    assert list(violations(ast.parse(code)))


def test_the_check_sees_the_code():
    assert len(SOURCES) > 50


@pytest.mark.parametrize("package", ["p2rec_core", "storage/ingest"])
def test_what_computes_imports_statically(package):
    # a module that is imported by a computed name is not in the fingerprint of the code, unless a call names it
    named_by_calls = {ROOT / "p2rec_core/backbones/base.py"}
    for path in set((ROOT / package).rglob("*.py")) - named_by_calls:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert "import_module" not in ast.unparse(node.func), path


@pytest.mark.parametrize("package", PACKAGES)
def test_no_tests_package_shadows_a_real_one(package):
    assert not list((ROOT / "tests").rglob("__init__.py"))
    assert (ROOT / package / "__init__.py").exists()
