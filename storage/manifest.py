"""What is written beside an artefact's files, and the key that names the artefact.

A manifest is canonical: its text is a function of its content, so any change of any byte of it is
seen on reading.
"""

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal, cast

from p2rec_core.errors import ArtefactDamaged, StoreError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

Kind = Literal["table", "tensors", "json"]
SUFFIX: dict[Kind, str] = {"table": ".parquet", "tensors": ".safetensors", "json": ".json"}
BETWEEN = "~"
"""Cannot occur in a name, so that a name made of several can be taken apart again."""
REBUILD = "Run the pipeline again: it sets the damaged artefact aside and rebuilds it."

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VARIANT_DIGITS = 16
_LIBRARIES = ("numpy", "pyarrow", "duckdb", "torch", "transformers")


def checked_name(kind: str, name: object) -> str:
    """Return ``name`` if it may become part of a path.

    Raises:
        StoreError: It is not 1 to 64 of ``a-z 0-9 . _ -``, starting with a letter or a digit.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StoreError(
            f"{name!r:.80} cannot be used as {kind}.",
            remedy="Use 1 to 64 of the characters a-z 0-9 . _ - and start with a letter or a digit.",
        )
    return name


def key_of_directory(name: str) -> str | None:
    """The key of what an artefact's directory holds, whether the key's own or that of a variant; None if it is none."""
    key, between, digest = name.partition(BETWEEN)
    if between and not re.fullmatch(rf"[0-9a-f]{{{_VARIANT_DIGITS}}}", digest):
        return None
    return key if _NAME.fullmatch(key) else None


def canonical_json(obj: object) -> str:
    """The one JSON text of a value: keys sorted, no spaces, characters as they are.

    Args:
        obj: None, bool, int, finite float, str, and lists, tuples and dicts with text keys of these.

    Raises:
        StoreError: The value holds anything else, for example NaN, a path or a key that is not text.
    """
    return _dumps(obj, indent=None)


def _dumps(obj: object, *, indent: int | None) -> str:
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        _refuse_other_keys(obj)
        text = json.dumps(
            obj, sort_keys=True, separators=separators, ensure_ascii=False, allow_nan=False, indent=indent
        )
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(
            f"A value cannot be stored as JSON: {error}.",
            remedy="Use only text, finite numbers, booleans, None, lists and dicts with text keys.",
        ) from error
    return text


def _refuse_other_keys(obj: object) -> None:
    if isinstance(obj, Mapping):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not text")
            _refuse_other_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _refuse_other_keys(value)


def render_json(obj: object) -> bytes:
    """The content of a JSON file: as ``canonical_json``, with line breaks for people."""
    return (_dumps(obj, indent=2) + "\n").encode()


def parse_canonical(data: bytes) -> dict[str, Any]:
    """Read what ``render_json`` wrote for a dict.

    Raises:
        ValueError: It is not JSON, not a dict, or not byte for byte what ``render_json`` writes.
    """
    obj = json.loads(data.decode())
    if not isinstance(obj, dict) or render_json(obj) != data:
        raise ValueError("it is not in canonical form")
    return obj


def digest_of(fields: Mapping[str, object]) -> str:
    """The sha256 in hex over the canonical JSON of all fields but ``digest``."""
    rest = {name: value for name, value in fields.items() if name != "digest"}
    return hashlib.sha256(canonical_json(rest).encode()).hexdigest()


def parse_digested(data: bytes, place: str) -> dict[str, Any]:
    """Read what ``render_json`` wrote of fields with their ``digest`` and ``format_version``.

    Form and digest are the same in every version, so a version that a flipped bit has made is damage and not news.

    Raises:
        StoreError: A newer version of P2Rec wrote it.
        ValueError: It is not whole.
    """
    fields = parse_canonical(data)
    found, expected = fields.get("digest"), digest_of(fields)
    if found != expected:
        raise ValueError(f"its digest should be {expected}, found {found!r:.80}")
    check_version(fields.get("format_version"), place)
    return fields


def utc_now() -> str:
    """The time in UTC to the second, in ISO 8601; to be read by people, nothing is ordered by it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class InputRef:
    """A file of an upstream artefact that a stage read.

    Attributes:
        stage: Stage that wrote it.
        key: Key of its artefact.
        file: Name of the file within the artefact.
        sha256: Hash of its content in hex, the only part that enters the key of what is computed from it.
    """

    stage: str
    key: str
    file: str
    sha256: str


@dataclass(frozen=True)
class ArtefactRef:
    """A small reference to an artefact, to be passed between tasks and kept in snapshots.

    Attributes:
        stage: Stage that wrote it.
        key: Its key.
        files: sha256 in hex by file name.
    """

    stage: str
    key: str
    files: dict[str, str]

    @property
    def variant(self) -> str:
        """Name of the directory of this content where the key's own has other content."""
        digest = hashlib.sha256(canonical_json(self.files).encode()).hexdigest()
        return f"{self.key}{BETWEEN}{digest[:_VARIANT_DIGITS]}"

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {"stage": self.stage, "key": self.key, "files": dict(sorted(self.files.items()))}

    @classmethod
    def from_json(cls, obj: object) -> "ArtefactRef":
        """Read what ``to_json`` gave.

        Raises:
            StoreError: It is not that.
        """
        try:
            fields = cast(dict[str, Any], obj)
            files = {checked_name("a file name", n): _checked_sha256(h) for n, h in fields["files"].items()}
            if set(fields) != {"stage", "key", "files"}:
                raise ValueError("it has other fields than stage, key and files")
            return cls(checked_name("a stage", fields["stage"]), checked_name("a key", fields["key"]), files)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(
                f"{obj!r:.120} is not a reference to an artefact.",
                remedy="Pass what ArtefactRef.to_json returned.",
            ) from error


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of one file.

    Attributes:
        name: Name within the artefact.
        path: Name in the directory, with suffix.
        kind: ``table``, ``tensors`` or ``json``.
        rows: Rows of a table, else None.
        bytes: Size of the file.
        sha256: Hash of its content in hex.
        columns: Type by column or tensor name; empty for JSON.
    """

    name: str
    path: str
    kind: Kind
    rows: int | None
    bytes: int
    sha256: str
    columns: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """What an artefact is, what it was computed from, and what its files must be.

    Attributes:
        format_version: Version of the store's format.
        stage: Stage that wrote it.
        key: Its key.
        created_utc: When it was published; for people only.
        settings: The settings that the stage read.
        inputs: Files of other artefacts that it read, by input name.
        fingerprint: Hash of the code that computed it.
        files: Its files by name.
        info: What else the stage reports, such as counts.
        wall_s: Seconds that the stage took.
        versions: Library versions; None for one that is not installed.
        digest: sha256 over all of the above.
    """

    format_version: int
    stage: str
    key: str
    created_utc: str
    settings: dict[str, Any]
    inputs: dict[str, InputRef]
    fingerprint: str
    files: dict[str, FileEntry]
    info: dict[str, Any]
    wall_s: float
    versions: dict[str, str | None]
    digest: str

    @classmethod
    def create(
        cls,
        stage: str,
        key: str,
        *,
        settings: dict[str, Any],
        inputs: dict[str, InputRef],
        fingerprint: str,
        files: dict[str, FileEntry],
        info: dict[str, Any],
        wall_s: float,
    ) -> "Manifest":
        """Fill in time, versions and digest."""
        manifest = cls(
            format_version=FORMAT_VERSION,
            stage=stage,
            key=key,
            created_utc=utc_now(),
            settings=settings,
            inputs=inputs,
            fingerprint=fingerprint,
            files=files,
            info=info,
            wall_s=wall_s,
            versions=library_versions(),
            digest="",
        )
        return dataclasses.replace(manifest, digest=digest_of(dataclasses.asdict(manifest)))

    def ref(self) -> ArtefactRef:
        """A small reference to the artefact."""
        return ArtefactRef(self.stage, self.key, {name: entry.sha256 for name, entry in self.files.items()})

    def render(self) -> bytes:
        """The content of the manifest file."""
        return render_json(dataclasses.asdict(self))

    @classmethod
    def parse(cls, data: bytes, *, place: str) -> "Manifest":
        """Read a manifest file.

        Args:
            data: Its content.
            place: Where it was found, for messages.

        Raises:
            StoreError: A newer version of P2Rec wrote it.
            ArtefactDamaged: It is not a whole, unchanged manifest.
        """
        try:
            fields = parse_digested(data, place)
            inputs = {name: InputRef(**ref) for name, ref in fields["inputs"].items()}
            files = {name: _entry(name, entry) for name, entry in fields["files"].items()}
            manifest = cls(**{**fields, "inputs": inputs, "files": files})
            checked_name("a stage", manifest.stage)
            checked_name("a key", manifest.key)
        except ArtefactDamaged:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtefactDamaged(f"The manifest {place} is damaged: {error}.", remedy=REBUILD) from error
        return manifest


def check_version(found: object, place: str) -> None:
    """Accept the format versions that this program reads.

    Raises:
        StoreError: The version is newer.
        ValueError: It is not a version at all.
    """
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"its format version is {found!r:.40}")
    if found > FORMAT_VERSION:
        raise StoreError(
            f"{place} has format version {found}; this P2Rec reads up to {FORMAT_VERSION}.",
            remedy="Install a newer P2Rec or choose another store directory.",
        )


def _entry(name: str, fields: dict[str, Any]) -> FileEntry:
    entry = FileEntry(**fields)
    if (
        entry.kind not in SUFFIX
        or entry.name != name
        or entry.path != checked_name("a file name", name) + SUFFIX[entry.kind]
    ):
        raise ValueError(f"file entry {name!r:.80} contradicts itself")
    _checked_sha256(entry.sha256)
    return entry


def _checked_sha256(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{value!r:.80} is not a sha256")
    return value


def content_key(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, InputRef], fingerprint: str) -> str:
    """The key of what a stage computes.

    Of an input only its name and the hash of its content count, not the artefact that it came from:
    an upstream stage that recomputes to the same content does not invalidate what is below it.

    Args:
        stage: The stage.
        settings: The settings that it reads.
        inputs: The files that it reads, by input name.
        fingerprint: Hash of the code that computes.

    Returns:
        32 hexadecimal digits.

    Raises:
        StoreError: The stage's name or a setting cannot be stored.
    """
    content = {
        "stage": checked_name("a stage", stage),
        "settings": dict(settings),
        "inputs": {name: ref.sha256 for name, ref in inputs.items()},
        "fingerprint": fingerprint,
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]


def library_versions() -> dict[str, str | None]:
    """Versions of Python and the libraries that can change a result; nothing is imported for it."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = None
    return versions
