"""Places of archives, folders or prefixes of S3 buckets.

A file is there whole under its name, or not at all.
"""

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4

from store.errors import ArchiveRefused, ArchiveUnavailable
from store.settings import settings

NOT_WHOLE = ".part"
"""The end of a local file's name while it is written."""
_S3 = re.compile(r"^s3://([^/]+)/?(.*)$")


def location_in(place: str, name: str) -> str:
    """Return where a file of this name is in a place.

    Args:
        place: A folder or `s3://bucket/prefix`.
        name: The file's name.

    Raises:
        ArchiveRefused: there is no such folder.
    """
    if on_s3 := _S3.match(place):
        prefix = on_s3[2].rstrip("/")
        return f"s3://{on_s3[1]}/{f'{prefix}/' if prefix else ''}{name}"
    folder = Path(place).absolute()
    # One that is made here might be an empty mount point.
    if not place or not folder.is_dir():
        raise ArchiveRefused(
            f"to: there is no folder {place!r}; make it, or give another one or "
            "s3://bucket/prefix. Nothing was archived."
        )
    return str(folder / name)


def exists(location: str) -> bool:
    """Return whether a file is there.

    Raises:
        ArchiveUnavailable: S3 did not answer.
        ArchiveRefused: S3 refuses the question.
    """
    if (on_s3 := _S3.match(location)) is None:
        return Path(location).exists()
    from store import aws

    with _asking(location):
        # Unlike a look at the object it needs the right to list, and tells a right from a name.
        found = aws.s3(settings().aws_endpoint_url).list_objects_v2(
            Bucket=on_s3[1], Prefix=on_s3[2], MaxKeys=1
        )
    return any(each.get("Key") == on_s3[2] for each in found.get("Contents", ()))


def is_at(location: str, file: IO[bytes]) -> bool:
    """Return whether a file that was opened is at its place still.

    Of one on S3, which was copied, it is only known whether there is one.

    Raises:
        ArchiveUnavailable: S3 did not answer.
        ArchiveRefused: S3 refuses the question.
    """
    if _S3.match(location):
        return exists(location)
    try:
        return os.path.samestat(Path(location).stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def created(location: str) -> Iterator[IO[bytes]]:
    """Yield a file to write, published when it is whole.

    Args:
        location: A path or `s3://bucket/key`; what is there is replaced.

    Raises:
        ArchiveUnavailable: S3 did not answer.
        ArchiveRefused: the place cannot be written.
    """
    try:
        if on_s3 := _S3.match(location):
            from store import aws

            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with _asking(location):
                    # In parts where it is large; the object is there when all of them are.
                    aws.s3(settings().aws_endpoint_url).upload_fileobj(file, on_s3[1], on_s3[2])
        else:
            with _published(Path(location)) as file:
                yield file
    except OSError as error:
        raise ArchiveRefused(f"to: {location} cannot be written: {error.strerror}") from error


@contextmanager
def _published(path: Path) -> Iterator[IO[bytes]]:
    """Yield a temporary file, renamed to the path when it is whole."""
    # What a killed process has left. One that still writes fails when it renames its file; in a
    # file that both have opened, it would write into what the other has published.
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{NOT_WHOLE}"):
        left.unlink(missing_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex}{NOT_WHOLE}")
    try:
        with part.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def opened(location: str) -> Iterator[IO[bytes]]:
    """Yield a file of an archive to read.

    One on S3 is copied to this machine first.

    Raises:
        ArchiveUnavailable: S3 did not answer.
        ArchiveRefused: the file is not there, or must not be read.
    """
    if on_s3 := _S3.match(location):
        from store import aws

        with tempfile.TemporaryFile() as copy:
            try:
                with _asking(location):
                    found = aws.s3(settings().aws_endpoint_url).get_object(
                        Bucket=on_s3[1], Key=on_s3[2]
                    )
                    shutil.copyfileobj(found["Body"], copy)
            except OSError as error:
                raise ArchiveRefused(
                    f"{location} cannot be copied here: {error.strerror}; make room in "
                    f"{tempfile.gettempdir()}"
                ) from error
            copy.seek(0)
            yield copy
        return
    try:
        file = Path(location).open("rb")  # noqa: SIM115  (its reader's errors are not the place's)
    except OSError as error:
        raise ArchiveRefused(
            f"{location} cannot be read: {error.strerror}; it is on the machine that wrote it, or "
            "in a backup"
        ) from error
    with file:
        yield file


def _sync_folder(folder: Path) -> None:
    """Have a new name in a folder survive the loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _asking(location: str) -> Iterator[None]:
    """Raise boto3's errors as the archive's."""
    from store import aws

    with aws.calling(location, aws.Errors(ArchiveUnavailable, ArchiveRefused)):
        yield
