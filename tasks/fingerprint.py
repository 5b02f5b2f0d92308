"""A fingerprint of the code that computes a stage.

Two versions of the code have the same fingerprint if they differ in comments, docstrings and layout only, whichever
version of Python reads them. The modules are read as text and never imported, so that a fully cached run loads no
model code.
"""

import ast
import hashlib
import importlib.util
import time
from functools import cache
from pathlib import Path

COMPUTING = ("p2rec_core", "storage.ingest", "tasks")
"""Packages whose code decides what a stage computes, as far as the stage imports it."""

NOT_COMPUTING = (
    "p2rec_core.errors",
    "p2rec_core.progress",
    "p2rec_core.settings",
    "p2rec_core.backbones.registry",
    "tasks.stage",
)
"""Parts of these that cannot change a result: messages, settings whose values are in the key themselves, the list of
encoders, of which a stage names the one that computes it, and what runs stages and stores what they give."""

_PARSE_ATTEMPTS = 5


def code_fingerprint(*modules: str) -> str:
    """Hash a stage's modules and every computing module that they import, directly or not.

    Args:
        modules: Dotted names: the stage's own module, e.g. ``"tasks.clusters"``, and those that it finds by name.

    Returns:
        32 hexadecimal digits.
    """
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        normalised, imported = _read(name)
        seen[name] = normalised
        waiting.extend(other for other in imported if _computes(other))
    digest = hashlib.sha256()
    for name in sorted(seen):
        digest.update(f"{name}\n{seen[name]}\n".encode())
    return digest.hexdigest()[:32]


def _computes(module: str) -> bool:
    return _within(module, COMPUTING) and not _within(module, NOT_COMPUTING)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def source_path(module: str) -> Path | None:
    """The file of a module, found without importing the module itself; None if there is no such module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@cache
def _read(module: str) -> tuple[str, tuple[str, ...]]:
    path = source_path(module)
    if path is None:
        raise ModuleNotFoundError(f"No source of {module}", name=module)
    return normalised_code(path.read_text(encoding="utf-8"), module)


def normalised_code(source: str, module: str) -> tuple[str, tuple[str, ...]]:
    """Reduce code to what it computes.

    Args:
        source: Text of the module.
        module: Its dotted name.

    Returns:
        The syntax tree without docstrings and positions, as text; and the first-party modules that it imports.
    """
    tree = _parsed(source)
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            imported.add(node.module)
            # "from package import module" imports a module, "from module import name" does not
            imported.update(f"{node.module}.{a.name}" for a in node.names if _is_package(node.module))
    ours = tuple(sorted(m for m in imported if _computes(m) and source_path(m) is not None))
    return _dumped(tree), ours


def _dumped(value: object) -> str:
    """A syntax tree as text that no version of Python changes by fields that it adds and the code does not use.

    ``ast.dump`` shows empty fields before Python 3.13, among them those that a newer version has added.
    """
    if isinstance(value, ast.AST):
        fields = ((name, field) for name, field in ast.iter_fields(value) if field is not None and field != [])
        return f"{type(value).__name__}({', '.join(f'{name}={_dumped(field)}' for name, field in fields)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_dumped, value))}]"
    return repr(value)


def _parsed(source: str) -> ast.Module:
    """Parse, and try again where CPython before 3.11.8 miscounts because another thread parses (gh-106905)."""
    for _ in range(_PARSE_ATTEMPTS):
        try:
            return ast.parse(source)
        except SystemError:
            time.sleep(0.01)
    return ast.parse(source)


def _is_package(module: str) -> bool:
    path = source_path(module) if _within(module, COMPUTING) else None
    return path is not None and path.name == "__init__.py"


def _is_text(statement: ast.stmt) -> bool:
    """Whether a statement is a bare string: a docstring or a description of the attribute above it."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
