"""A bucket of an object store, or a directory in its place: objects by name, as much of it as copies of a store need.

An object appears whole or not at all. ``create`` and ``swap`` are conditional writes: of several writers at most one
gets its way, and the others are told.
"""

import contextlib
import datetime
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from p2rec_core.errors import ArtefactDamaged, ExtraMissing, StoreError
from storage.disk import DurableFile

if TYPE_CHECKING:
    from obstore.store import ObjectStore, RetryConfig

SCHEMES = ("s3://", "gs://", "az://", "file://")
"""What the address of a bucket may begin with."""
_RETRY: "RetryConfig" = {"max_retries": 5, "retry_timeout": datetime.timedelta(seconds=60)}
_REMEDY = (
    "Check the address, the keys in the environment and the network; for a server of one's own set AWS_ENDPOINT_URL, "
    "and AWS_ALLOW_HTTP=true if it has no TLS."
)
_MOST_BYTES = 64 << 20
"""Of a manifest, a snapshot or a pointer; what is longer is none."""


@dataclass(frozen=True)
class Object:
    """Something in a bucket.

    Attributes:
        name: Its name, with slashes, below the bucket's prefix.
        n_bytes: Its size.
        changed: When it was written, by the bucket's clock.
    """

    name: str
    n_bytes: int
    changed: datetime.datetime


class Bucket:
    """Objects by name.

    Args:
        objects: The object store.
        address: What its user calls it, for messages.
    """

    def __init__(self, objects: "ObjectStore", address: str) -> None:
        self._objects = objects
        self.address = address

    @classmethod
    def open(cls, address: str, *, create: bool = False) -> "Bucket":
        """A bucket by its address; keys and regions are taken from the environment, as the providers' own tools do.

        Args:
            address: Such as ``s3://bucket/prefix`` or ``file:///mnt/share/p2rec``.
            create: Whether to make the directory of a ``file://`` address; buckets are made by their owners.

        Raises:
            ExtraMissing: obstore is not installed.
            StoreError: It is not an address of a bucket.
        """
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise ExtraMissing("obstore is not installed.", remedy="Install it: pip install obstore.") from error
        if not address.startswith(SCHEMES):
            raise StoreError(
                f"'{address}' is not the address of a bucket.",
                remedy=f"Use one that begins with {', '.join(SCHEMES)}, such as s3://bucket/prefix.",
            )
        if "@" in address or "?" in address:
            raise StoreError(
                "The address of a bucket holds neither a password nor a query.",
                remedy="Give keys in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            )
        try:
            if address.startswith("file://"):
                return cls(from_url(address, mkdir=create), address)
            return cls(from_url(address, retry_config=_RETRY), address.rstrip("/"))
        except (obstore.exceptions.BaseError, ValueError, OSError) as error:
            raise StoreError(f"The bucket {address} cannot be used: {_first_line(error)}.", remedy=_REMEDY) from error

    def read(self, name: str) -> bytes | None:
        """A small object; None if it is not there.

        Raises:
            StoreError: It cannot be read, or is no small object.
        """
        found = self.read_marked(name)
        return None if found is None else found[0]

    def read_marked(self, name: str) -> "tuple[bytes, Any] | None":
        """A small object and the mark of this version of it, for ``swap``; raises as ``read`` does."""
        import obstore

        with self._errors(name):
            try:
                got = obstore.get(self._objects, name)
            except FileNotFoundError:
                return None
            if got.meta["size"] > _MOST_BYTES:
                self._refuse(name, f"it has {got.meta['size']:,} bytes, and at most {_MOST_BYTES:,} are expected")
            return bytes(got.bytes()), got.meta["e_tag"]

    def create(self, name: str, data: bytes) -> bool:
        """Write an object that is not there yet; whether it was not.

        Raises:
            StoreError: It cannot be written.
        """
        import obstore

        with self._errors(name):
            try:
                obstore.put(self._objects, name, data, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def swap(self, name: str, data: bytes, mark: Any) -> bool:
        """Replace an object if it still is the version that ``read_marked`` gave; whether it was.

        A directory in a bucket's place cannot compare and replace in one step: there somebody else may come between.

        Raises:
            StoreError: It cannot be written.
        """
        import obstore

        with self._errors(name):
            try:
                obstore.put(self._objects, name, data, mode={"e_tag": mark})
            except obstore.exceptions.PreconditionError:
                return False
            except NotImplementedError:
                if obstore.head(self._objects, name)["e_tag"] != mark:
                    return False
                obstore.put(self._objects, name, data)
        return True

    def write(self, name: str, source: "Path | bytes") -> None:
        """Write an object, whether or not it is there.

        Args:
            name: Its name.
            source: Its content, or the file that holds it, which is never whole in memory.

        Raises:
            StoreError: It cannot be written.
        """
        import obstore

        with self._errors(name):
            obstore.put(self._objects, name, source)

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of an object, block by block.

        Raises:
            StoreError: It is not there, or cannot be read.
        """
        import obstore

        with self._errors(name):
            for block in obstore.get(self._objects, name).stream():
                yield bytes(block)

    def download(self, name: str, path: Path, *, n_bytes: int, sha256: str) -> None:
        """Write an object to a new file and flush it.

        Args:
            name: Its name.
            path: Where to.
            n_bytes: Its size; what comes beyond is not read.
            sha256: Of its content, in hex.

        Raises:
            StoreError: It cannot be read.
            ArtefactDamaged: It is another content.
            OSError: The file cannot be written.
        """
        with contextlib.closing(DurableFile(path)) as file:
            for block in self.blocks(name):
                file.write(block)
                if file.n_bytes > n_bytes:
                    break
            found = file.sync()
            if file.n_bytes != n_bytes or found != sha256:
                raise ArtefactDamaged(
                    f"The object {name} in {self.address} is damaged: expected {n_bytes} bytes with sha256 {sha256}, "
                    f"found {file.n_bytes} or more with {found}.",
                    remedy="Push again with `p2rec push --check` from a store that holds it.",
                )

    def sha256(self, name: str) -> str | None:
        """The hash of an object's content in hex; None if it is not there."""
        import obstore

        digest = hashlib.sha256()
        with self._errors(name):
            try:
                for block in obstore.get(self._objects, name).stream():
                    digest.update(block)
            except FileNotFoundError:
                return None
        return digest.hexdigest()

    def list(self, prefix: str) -> "list[Object]":
        """What there is below a name.

        Raises:
            StoreError: The bucket cannot be read.
        """
        import obstore

        with self._errors(prefix):
            found = [entry for page in obstore.list(self._objects, prefix) for entry in page]
        return [Object(entry["path"], entry["size"], entry["last_modified"]) for entry in found]

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; one that is not there is none.

        Raises:
            StoreError: One cannot be removed.
        """
        import obstore

        for name in names:
            with self._errors(name), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._objects, name)

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """Turn what the object store says into one error that names the object."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (OSError, BaseError) as error:
            self._refuse(name, _first_line(error), error)

    def _refuse(self, name: str, why: str, cause: Exception | None = None) -> NoReturn:
        raise StoreError(f"The object {name} in {self.address} cannot be used: {why}.", remedy=_REMEDY) from cause


def _first_line(error: Exception) -> str:
    """What an error says, without what a programmer would like to know behind it."""
    return (str(error).split("\n\n")[0].strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:400]
