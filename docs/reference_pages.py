"""MkDocs hook: the reference pages, made of the code whenever the site is built.

Nothing of it is kept in the repository, so that it cannot be out of date.
"""

import html
import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cyclopts import App

from flows.cli import app
from p2rec_core import errors
from p2rec_core.settings.document import Group, groups
from storage.schemas import TABLES

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

_SETTINGS_HEAD = """# Settings

Made from the code of this version. Set them with `--set clusters.n_clusters=20`, in a TOML file (`--config`;
`p2rec init` writes one), or in the form of Prefect's interface. Later wins: general defaults, the profile,
presets of the dataset, the recipe, the file, `--set`. The defaults below are the general ones; `p2rec
settings -d NAME` shows what holds for a dataset beside them, `p2rec settings fusion` some of it, and `p2rec
settings -d NAME --snapshot 3 --toml` writes the file that a snapshot was computed with. Null is `null` with
`--set`, and the text `"null"` in TOML, which has none. A value that is not allowed, and a name that does not
exist, is an error that names it.
"""

_TABLES_HEAD = """# Tables

Made from the code of this version: the views that `p2rec query` asks ([how](../how-to/query-with-duckdb.md)).
A `*_idx` is dense and counts from 1, a `*_id` is the owner's identifier. A view of a table with `user_idx` or
`item_idx` also has the owner's identifier in front, and that of a table that several slots hold has a column
`slot`.
"""

_COMMANDS_HEAD = """# Command line

Made from the code of this version. On a terminal, tables are drawn and have colours (not with `NO_COLOR`),
and long commands show bars with the time left. Into a file or a pipe tables are lines of tab-separated
values, and `--json` answers a program. Progress, notes and errors go to the standard error.

## Exit status

| status | |
|---|---|
| 0 | done |
"""

_COMMANDS_TAIL = """| 130 | interrupted by Ctrl-C |

`P2REC_TRACEBACK=1` shows the traceback of an error.

After Ctrl-C what is finished is kept, and a training keeps its last checkpoint
(`runtime.checkpoint_every_s`); the command that is printed goes on from there. A second interrupt is not
needed.

## Completion

    p2rec completion bash > ~/.local/share/bash-completion/completions/p2rec
    p2rec completion zsh > ~/.zfunc/_p2rec
    p2rec completion fish > ~/.config/fish/completions/p2rec.fish

Zsh needs `fpath+=(~/.zfunc)` before `compinit` in `~/.zshrc`.

## Environment

| variable | |
|---|---|
| `P2REC_STORE` | directory of the artefact store, `.p2rec` if unset |
| `P2REC_DATASETS_DIR` | directory of the known datasets' files |
| `P2REC_OFFLINE` | other than 0: no downloads |
| `P2REC_SCHEDULES` | schedules of `p2rec serve` |
| `PREFECT_API_URL` | a Prefect server of one's own |
"""


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages to the site."""
    from mkdocs.structure.files import File

    pages = {"settings": settings_page(), "command-line": commands_page(), "tables": tables_page()}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def settings_page() -> str:
    """Every setting by group: values, default, meaning."""
    return "\n".join([_SETTINGS_HEAD, *(line for group in groups() for line in _group(group))]) + "\n"


def _group(group: Group) -> Iterator[str]:
    yield from ("", f"## {group.name or 'The whole'}", "", _prose(group.text), "")
    yield from ("| setting | values | default | |", "|---|---|---|---|")
    for meaning in group.settings:
        choices = "".join(f"<br>`{value}`: {_prose(text)}" for value, text in meaning.choices.items() if text)
        text = _prose(meaning.text) + choices
        name, kind = meaning.name.rpartition(".")[2], _prose(meaning.kind)
        yield f"| `{name}` | {kind} | `{_cell(meaning.default)}` | {text} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _prose(text: str) -> str:
    """Text in which nothing is markup but code."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(part if part.startswith("`") else html.escape(_cell(part), quote=False) for part in parts)


def tables_page() -> str:
    """Every table of the store: columns, types, meaning."""
    lines = [_TABLES_HEAD]
    for table, columns in sorted(TABLES.items()):
        lines += ["", f"## {table}", "", "| column | type | |", "|---|---|---|"]
        for column in columns:
            kind = "vector of float32" if column.type is None else str(column.type)
            lines.append(f"| `{column.name}` | {_prose(kind)} | {_prose(column.doc)} |")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Exit codes, completion, variables, and every command."""
    lines = [_COMMANDS_HEAD.rstrip()]
    for status, texts in sorted(_statuses().items()):
        lines.append(f"| {status} | {'; '.join(texts)} |")
    lines.append(_COMMANDS_TAIL)
    for name, command in _commands(app, "p2rec"):
        made = command.generate_docs(output_format="markdown", heading_level=2, usage_name=name)
        lines.append(re.sub(r"\A## .*$", f"## {name}", made, count=1, flags=re.MULTILINE))
        lines += _examples(command)
    return "\n".join(lines) + "\n"


def _statuses() -> dict[int, list[str]]:
    """Status → what its errors are."""
    found: dict[int, list[str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.P2RecError):
            own = "exit_status" in vars(kind)
            if own:
                first = (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")
                found.setdefault(kind.exit_status, []).append(first)
    found[1] = ["another error"]
    found[2] = ["the arguments are wrong", *found[2]]
    return found


def _commands(of: App, prefix: str) -> Iterator[tuple[str, App]]:
    for name in of:
        if not name.startswith("-"):
            command = of[name]
            if any(not inner.startswith("-") for inner in command):
                yield from _commands(command, f"{prefix} {name}")
            else:
                yield f"{prefix} {name}", command


def _examples(command: App) -> list[str]:
    """What the command's own words say beyond its summary."""
    text = inspect.getdoc(command.default_command) or ""
    _, _, rest = text.partition("\n\n")
    return ["", re.sub(r"^Examples?:$", "Examples:\n", rest, flags=re.MULTILINE), ""]
