"""Settings in words: what each means, which values it takes, and a configuration file that says so."""

import ast
import inspect
import itertools
import json
import textwrap
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from p2rec_core.settings.base import Settings
from p2rec_core.settings.pipeline import NULL, PipelineSettings, which_backbones
from p2rec_core.settings.proposal import Proposal
from p2rec_core.settings.sequence_model import EncoderSettings

EXPERIMENTS_ONLY = ("e4srec", "cost")
"""Groups that no run of a pipeline reads."""

_WIDTH = 110
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Meaning:
    """What there is to say of a setting.

    Attributes:
        name: Its dotted name.
        kind: Which values it takes, with their bounds.
        default: The general default as JSON; presets of datasets, profiles and recipes may have another.
        text: What it means.
        choices: Values and what each means, where there are few.
    """

    name: str
    kind: str
    default: str
    text: str
    choices: Mapping[str, str]


@dataclass(frozen=True)
class Group:
    """A table of a configuration file.

    Attributes:
        name: Its dotted name.
        text: What it is about.
        settings: Its settings, in order of declaration.
    """

    name: str
    text: str
    settings: tuple[Meaning, ...]


def groups(model: type[Settings] = PipelineSettings) -> list[Group]:
    """Every group of settings that has settings of its own, in order of declaration."""
    return list(_groups(model, model(), "", ""))


def _groups(model: type[Settings], default: Settings, prefix: str, above: str) -> Iterator[Group]:
    """A group and those within it; ``above`` is what its place says of it, before its own words."""
    own = tuple(
        _meaning(model, name, field, getattr(default, name), prefix)
        for name, field in model.model_fields.items()
        if _nested(field) is None
    )
    if own:
        yield Group(prefix, f"{above} {one_line(model.__doc__)}".strip(), own)
    for name, field in model.model_fields.items():
        nested = _nested(field)
        if nested is not None:
            place = f"{'' if own else above} {one_line(field.description)}".strip()
            yield from _groups(nested, getattr(default, name), _dotted(prefix, name), place)


def _nested(field: FieldInfo) -> type[Settings] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Settings) else None


def _meaning(model: type[Settings], name: str, field: FieldInfo, default: Any, prefix: str) -> Meaning:
    text = one_line(field.description)
    if issubclass(model, EncoderSettings):
        text += which_backbones(name)
    shown = json.dumps(to_jsonable_python(default), ensure_ascii=False)
    return Meaning(_dotted(prefix, name), _kind(field), shown, text, _choices(field.annotation))


def _kind(field: FieldInfo) -> str:
    """The values of a field, such as ``whole number, ≥ 2, ≤ 65536``."""
    words = _kind_of(field.annotation)
    for constraint in field.metadata:
        words += "".join(
            f", {sign} {value if isinstance(value, int) else format(value, 'g')}"
            for name, sign in _BOUNDS.items()
            if (value := getattr(constraint, name, None)) is not None
        )
    return words


def _kind_of(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        [left] = [part for part in get_args(kind) if part is not type(None)]
        return f"{_kind_of(left)} or null"
    if origin is tuple:
        return f"list of {_kind_of(get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(f'"{member.value}"' for member in kind)
    return _KINDS[kind]


def _choices(kind: Any) -> dict[str, str]:
    """What the members of an enumeration mean: the texts below them, which Python does not keep."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return {}
    [defined] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(defined, ast.ClassDef)
    values = {member.name: str(member.value) for member in kind}
    texts = dict.fromkeys(values.values(), "")
    for before, after in itertools.pairwise(defined.body):
        match before, after:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                texts[values[name]] = one_line(text)
    return texts


def configuration(
    head: Iterable[str], proposed: Iterable[Proposal], *, left_out: Iterable[str] = (), everything: bool = False
) -> str:
    """A configuration file in TOML in which every value is commented with its meaning.

    Args:
        head: Lines of a comment at its top.
        proposed: The values that it sets.
        left_out: Groups, or parts of them, that it does not have.
        everything: Whether all other settings follow in their groups as comments, with their general defaults.

    Returns:
        The file's text.
    """
    values = {proposal.name: proposal for proposal in proposed}
    without = tuple(left_out)
    lines = [*_comment(head)]
    for group in groups():
        own = [m for m in group.settings if m.name in values or everything]
        if not own or any(group.name == name or group.name.startswith(name + ".") for name in without):
            continue
        # settings that belong to no table stand before the first one
        part = ["", *_comment(textwrap.wrap(group.text, _WIDTH)), *([f"[{group.name}]"] if group.name else [])]
        for meaning in own:
            part += ["", *_setting(meaning, values.get(meaning.name))]
        lines += part
    return "\n".join(lines) + "\n"


def _setting(meaning: Meaning, proposal: Proposal | None) -> Iterator[str]:
    yield from _comment(textwrap.wrap(f"{meaning.text} ({meaning.kind}; general default {meaning.default})", _WIDTH))
    name = meaning.name.rpartition(".")[2]
    if proposal is None:
        yield f"# {name} = {_toml(json.loads(meaning.default))}"
        return
    if proposal.why:
        yield from _comment(textwrap.wrap(f"Here: {proposal.why}.", _WIDTH))
    yield f"{name} = {_toml(proposal.value)}"


def _toml(value: Any) -> str:
    """A JSON value as TOML has it; what JSON writes of numbers, texts and lists TOML reads."""
    if value is None:
        value = NULL
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(lines: Iterable[str]) -> list[str]:
    return [f"# {line}".rstrip() for line in lines]


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def one_line(text: str | None) -> str:
    """Text without line ends, and without the quotation marks of code."""
    return " ".join((text or "").split()).replace("``", "")
