"""Local or S3 files of orders, decoded by their byte order mark."""

import codecs
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from store.errors import SourceUnavailable, UnreadableSource
from store.settings import settings

logger = logging.getLogger("store.intake")

COPIED_AT_ONCE = 1024 * 1024
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
"""The byte order marks with which a text may begin, and its encoding (Unicode 16.0, 23.8)."""

_S3 = re.compile(r"^s3://([^/]+)/(.+)$")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextmanager
def opened(source: str, keep_alive: Callable[[], None] = lambda: None) -> Iterator[IO[bytes]]:
    """Copy a source into a temporary file, in UTF-8 without a mark.

    Args:
        source: A local path or `s3://bucket/key`.
        keep_alive: Called again and again while it is copied.

    Raises:
        UnreadableSource: it is not there or must not be read, or has no known format or encoding.
        SourceUnavailable: S3 did not answer, or broke off.
    """
    file_format(source)
    with tempfile.TemporaryFile() as copy:
        with _original(source) as original:
            _copy(source, original, copy, keep_alive)
        yield copy


def file_format(source: str) -> str:
    """Return the format in a source's name (csv, jsonl or ndjson).

    Raises:
        UnreadableSource: it tells none of them.
    """
    suffix = source.rpartition(".")[2].lower()
    if suffix not in ("csv", "jsonl", "ndjson"):
        raise UnreadableSource(
            f"source: {source} is no file of a known format; give .jsonl, .ndjson or .csv"
        )
    return suffix


@contextmanager
def _original(source: str) -> Iterator[_Readable]:
    if on_s3 := _S3.match(source):
        # boto3 takes a good part of a second to import; only who uses it pays for it.
        from store import aws

        with aws.calling(f"source: {source}", aws.Errors(SourceUnavailable, UnreadableSource)):
            found = aws.s3(settings().aws_endpoint_url).get_object(Bucket=on_s3[1], Key=on_s3[2])
            yield found["Body"]
        return
    path = local_path(source)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UnreadableSource(f"source: {path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def local_path(source: str) -> Path:
    """Return the path of a local source, which need not be there.

    Args:
        source: A path; a relative one begins at `STORE_ORDERS_FOLDER`, or at the folder in which
            the process runs where that is not set.

    Raises:
        UnreadableSource: it lies outside of `STORE_ORDERS_FOLDER`.
    """
    folder = settings().orders_folder
    if not folder:
        return Path(source).absolute()
    path = (Path(folder) / source).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise UnreadableSource(
            f"source: {source} lies outside of STORE_ORDERS_FOLDER, the folder of orders"
        )
    return path


def _copy(
    source: str, original: _Readable, copy: IO[bytes], keep_alive: Callable[[], None]
) -> None:
    content = original.read(COPIED_AT_ONCE)
    try:
        mark, encoding = encoding_of(content)
        content = content.removeprefix(mark)
        decoder = codecs.getincrementaldecoder(encoding)()
        while content:
            # A byte that is not UTF-8 spoils its line, not the file.
            copy.write(content if encoding == "utf-8" else decoder.decode(content).encode())
            keep_alive()
            content = original.read(COPIED_AT_ONCE)
        decoder.decode(b"", final=True)
    except UnicodeError as error:
        raise UnreadableSource(f"source: {source}: {explain_encoding(error)}") from None


def explain_encoding(error: UnicodeError) -> str:
    """Return why a text cannot be decoded, with the remedy."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not {error.encoding.upper()}; save it as UTF-8"
    return str(error)


def encoding_of(beginning: bytes) -> tuple[bytes, str]:
    """Return a text's byte order mark and encoding, UTF-8 without one.

    Raises:
        UnicodeError: it is in UTF-16 or UTF-32 and has no mark.
    """
    for mark, encoding in MARKS:
        if beginning.startswith(mark):
            return mark, encoding
    if b"\0" in beginning[:4]:
        raise UnicodeError("it is in UTF-16 or UTF-32 without a byte order mark; save it as UTF-8")
    return b"", "utf-8"


def decoded(content: bytes) -> str:
    """Decode a small text by its byte order mark.

    Raises:
        UnicodeError: it is not in that encoding.
    """
    mark, encoding = encoding_of(content)
    return content.removeprefix(mark).decode(encoding)


def put_beside(source: str, suffix: str, content: IO[bytes]) -> str | None:
    """Write a file beside a source.

    Returns:
        Its name; none where it cannot be written, which is logged.
    """
    name = f"{source}{suffix}"
    if on_s3 := _S3.match(name):
        from store import aws

        client = aws.s3(settings().aws_endpoint_url)
        try:
            client.put_object(Bucket=on_s3[1], Key=on_s3[2], Body=content)
        except aws.FAILURES as error:
            logger.warning("%s could not be written: %s", name, aws.describe(error))
            return None
        return name
    try:
        with local_path(name).open("wb") as file:
            shutil.copyfileobj(content, file)
    except OSError as error:
        logger.warning("%s could not be written: %s", name, error.strerror)
        return None
    return name
