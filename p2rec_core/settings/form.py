"""Settings as a form: the same groups and fields, each of which may be left empty.

What is left empty is not set, so that the presets of the dataset, the profile and the recipe decide.
"""

import json
import types
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from p2rec_core.errors import SettingsError
from p2rec_core.settings.base import Settings


@cache
def form_of(group: type[Settings], leave_out: frozenset[str] = frozenset()) -> type[BaseModel]:
    """A model of the changes to a group of settings.

    Args:
        group: The settings.
        leave_out: Fields of it that the form does not have.

    Returns:
        A model with the group's name and fields. Their types, bounds and descriptions are the group's own, with the
        default in words; no field is required and none has a value of its own. What only a whole group can tell, such
        as whether two values fit together, it does not check.
    """
    fields: dict[str, Any] = {}
    for name, field in group.model_fields.items():
        if name not in leave_out:
            kind: Any = field.annotation
            nested = isinstance(kind, type) and issubclass(kind, Settings)
            fields[name] = _group(form_of(kind), field) if nested else _leaf(field)
    return create_model(group.__name__, __config__=ConfigDict(extra="forbid"), __doc__=group.__doc__, **fields)


def changes_of(group: type[Settings], values: Any, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Check what was written into a form.

    Args:
        group: The settings.
        values: Nested values.
        leave_out: Fields that the form does not have.

    Returns:
        The values that were given, as JSON values.

    Raises:
        SettingsError: Names every wrong field.
    """
    form = form_of(group, frozenset(leave_out))
    try:
        return form.model_validate(values).model_dump(mode="json", exclude_unset=True)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise SettingsError(
            "; ".join(problems) + ".", remedy="`p2rec settings` lists every setting with its default and range."
        ) from error


def _group(form: type[BaseModel], field: FieldInfo) -> tuple[Any, FieldInfo]:
    # a property's own words would hide the definition's; both are put here
    words = f"{_one_line(form.__doc__)} {_one_line(field.description)}".strip()
    return form, _empty(words, _without_default)


def _leaf(field: FieldInfo) -> tuple[Any, FieldInfo]:
    default = field.get_default()
    kind: Any = field.annotation
    words = _one_line(field.description)
    if default is None:
        kind = _not_null(kind)  # left empty, it is null
    else:
        words = f"{words} Default: {_shown(default)}."
    extra: dict[str, Any] = dict(field.json_schema_extra) if isinstance(field.json_schema_extra, Mapping) else {}

    def schema(written: dict[str, Any]) -> None:
        _without_default(written)
        written.update(extra)
        if kind is bool:  # an interface would show a box to tick, and take one that is left alone for no
            written["anyOf"] = [{"type": "string", "enum": ["true", "false"]}, {"type": written.pop("type")}]

    form = _empty(words.strip(), schema)
    form.metadata = list(field.metadata)
    return kind, form


def _empty(words: str, schema: Callable[[dict[str, Any]], None]) -> FieldInfo:
    field: Any = Field(default=None, description=words, json_schema_extra=schema)
    made: FieldInfo = field
    return made


def _shown(default: Any) -> str:
    value = to_jsonable_python(default)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) else json.dumps(value)


def _not_null(kind: Any) -> Any:
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    [left] = [part for part in get_args(kind) if part is not type(None)]
    return left


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
