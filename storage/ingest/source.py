"""Bytes of a foreign file as blocks of whole, decoded lines; everything that concerns the file as a whole."""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from p2rec_core.errors import DataError

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 256 << 20

_WIDE_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_CONTAINERS = {
    b"PK\x03\x04": ("a ZIP archive", "Unpack it and pass the file inside."),
    b"PAR1": ("a Parquet file", "Set the format to 'parquet'."),
    b"BZh": ("a bzip2 archive", "Unpack it, or compress it with gzip."),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", "Unpack it, or compress it with gzip."),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "Unpack it, or compress it with gzip."),
    b"version https://git-lfs": ("a Git LFS pointer, not the data", "Run 'git lfs pull' in its repository."),
}
_MARKUP = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")


def sha256_of(path: Path) -> str:
    """Hash a file's bytes as they lie on disk (a ``.gz`` is not unpacked).

    Args:
        path: A regular file.

    Returns:
        The SHA-256 digest, 64 hexadecimal digits.

    Raises:
        DataError: The file is missing, a directory or unreadable.
    """
    check_file(path)
    digest = hashlib.sha256()
    with _reading(path) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Refuse what is not a readable, non-empty regular file.

    Args:
        path: Where the interactions should be.

    Raises:
        DataError: Nothing is there, it is a directory or another non-file, or it has no bytes.
    """
    try:
        if path.is_dir():
            raise DataError(
                f"{path} is a directory; interactions are read from one file.",
                remedy="Pass the file itself; concatenate partitions first.",
            )
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} does not exist.", remedy=_neighbours(path)) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if not path.is_file():
        raise DataError(f"{path} is not a regular file.", remedy="Save the stream to a file and pass that.")
    if size == 0:
        raise DataError(f"{path} is empty (0 bytes).", remedy="Check the export or download that wrote it.")


def _neighbours(path: Path) -> str:
    """Say what lies beside a path that does not exist."""
    folder = path.parent
    if not folder.is_dir():
        return f"Check the path: the directory {folder} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())[:8]
    return f"Check the path: {folder} holds {', '.join(names) if names else 'no files'}."


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {error}.", remedy="Check its permissions and the disk.")


def _reading(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None


@dataclass(frozen=True)
class Block:
    """Whole lines of a text file.

    Attributes:
        first_line: Line number of the first line, from 1.
        text: The lines, each ended by ``\\n``.
    """

    first_line: int
    text: str


class TextSource:
    """A text file, plain or gzip, read front to back in blocks of whole lines.

    A byte order mark is dropped and ``\\r\\n`` and ``\\r`` become ``\\n``.

    Args:
        path: The file.
        encoding: Its encoding, one in which line ends are those of ASCII.
        block_bytes: Bytes asked for at a time.

    Attributes:
        notices: Sentences about oddities that were put right; complete once ``blocks`` is exhausted.
    """

    def __init__(self, path: Path, *, encoding: str = "utf-8", block_bytes: int = BLOCK_BYTES) -> None:
        check_file(path)
        self.path = path
        self.encoding = encoding
        self.block_bytes = block_bytes
        self.notices: list[str] = []
        with _reading(path) as stream:
            magic = stream.read(2)
        self.compressed = path.suffix == ".gz" or magic == b"\x1f\x8b"
        if self.compressed and magic != b"\x1f\x8b":
            raise DataError(
                f"{path} ends in .gz but is not a gzip archive (it begins with {magic!r}).",
                remedy="Rename it without .gz if it is plain text; else download it again.",
            )

    def blocks(self) -> Iterator[Block]:
        """Yield the file's lines in order.

        Raises:
            DataError: The file is not text of this encoding (an HTML page, an archive, UTF-16, …), its archive is
                damaged, or one line is longer than ``MAX_LINE_BYTES``.
        """
        line, offset, lone = 1, 0, 0
        for raw in self._whole_lines():
            text = self._decode(raw, offset=offset, line=line)
            offset += len(raw)
            if "\r" in text:
                text = text.replace("\r\n", "\n")
                lone += text.count("\r")
                text = text.replace("\r", "\n")
            if not text.endswith("\n"):
                text += "\n"
            yield Block(line, text)
            line += text.count("\n")
        if lone:
            self.notices.append(f"{lone} lines end in a bare carriage return (CR); each was read as a line.")

    def _whole_lines(self) -> Iterator[bytes]:
        """Yield bytes cut at line ends; only the last piece may lack one."""
        pending = b""
        first = True
        for chunk in self._chunks():
            data = pending + chunk
            if first:
                data = self._check_start(data)
                first = False
            # A trailing \r may be the first half of \r\n: it waits for the next chunk.
            cut = max(data.rfind(b"\n"), data.rfind(b"\r", 0, max(len(data) - 1, 0))) + 1
            pending = data[cut:]
            if len(pending) > MAX_LINE_BYTES:
                raise DataError(
                    f"{self.path} holds a line of more than {MAX_LINE_BYTES >> 20} MiB.",
                    remedy="Check that this is a text file with line ends and the format is right.",
                )
            if cut:
                yield data[:cut]
        if pending:
            yield pending

    def _chunks(self) -> Iterator[bytes]:
        """Yield decompressed bytes, naming the archive when it is damaged."""
        with _reading(self.path) as raw:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if self.compressed else raw
            while True:
                try:
                    chunk = stream.read(self.block_bytes)
                except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                    raise DataError(
                        f"{self.path} is a damaged gzip archive: {error}.",
                        remedy="Download or compress it again; 'gzip -t' must accept it.",
                    ) from None
                except OSError as error:
                    raise _unreadable(self.path, error) from None
                if not chunk:
                    return
                yield chunk

    def _check_start(self, data: bytes) -> bytes:
        """Recognise by its first bytes what is no text; drop a byte order mark."""
        for mark, name in _WIDE_BOMS.items():
            if data.startswith(mark):
                raise self._wide(name, "its byte order mark says so")
        head = data[:4096]
        if len(head) >= 8 and head.count(0) * 3 >= len(head):
            raise self._wide("UTF-16 or UTF-32", f"{head.count(0)} of its first {len(head)} bytes are NUL")
        for magic, (what, remedy) in _CONTAINERS.items():
            if data.startswith(magic):
                raise DataError(f"{self.path} is {what}.", remedy=remedy)
        data = data.removeprefix(b"\xef\xbb\xbf")
        start = data[:4096].lstrip()
        if start.lower().startswith(_MARKUP):
            shown = start[:60].decode("utf-8", "replace")
            raise DataError(
                f"{self.path} is an HTML or XML page, not interactions; it begins with {shown!r}.",
                remedy="The download probably needs a login or another address; open the file to read why.",
            )
        return data

    def _wide(self, name: str, why: str) -> DataError:
        return DataError(
            f"{self.path} is encoded in {name}: {why}.",
            remedy="Convert it to UTF-8, for example with 'iconv -f UTF-16 -t UTF-8'.",
        )

    def _decode(self, raw: bytes, *, offset: int, line: int) -> str:
        try:
            return raw.decode(self.encoding)
        except UnicodeDecodeError as error:
            where = offset + error.start
            at = line + raw.count(b"\n", 0, error.start)
            raise DataError(
                f"{self.path}, line {at}: byte 0x{raw[error.start]:02x} at offset {where} is not "
                f"{self.encoding.upper()}.",
                remedy="Set encoding to the file's own, for example latin-1 or cp1252.",
            ) from None
