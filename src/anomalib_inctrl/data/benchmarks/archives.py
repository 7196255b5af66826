"""Unpacking of archives that nobody vouches for: plain files inside one new folder, or nothing."""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, RuntimeError)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".7z")


class UnsafeArchiveError(ValueError):
    """An archive holds something other than files and folders below the place it is unpacked to."""


class _Member(NamedTuple):
    """One entry of an archive.

    Attributes:
        name (str): Path as the archive has it.
        size (int): Bytes when unpacked.
        kind (str): ``"file"``, ``"folder"`` or ``"other"``: links, devices and the like.
    """

    name: str
    size: int
    kind: str


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, going by its name."""
    return path.is_file() and path.name.lower().endswith(ARCHIVES)


def unpack(archive: Path, target: Path) -> None:
    """Unpack a ``.zip``, ``.tar`` (also compressed) or ``.7z`` archive into a new folder.

    All entries are looked at before the first is written. Refused are archives with absolute paths, paths that lead out
    of the folder, links and devices, two entries for one place (also if they differ in upper and lower case alone, as
    some file systems don't tell these apart), and more content than the disk has room for.

    Args:
        archive (Path): Archive file.
        target (Path): Folder to make; it must not exist.

    Raises:
        UnsafeArchiveError: If the archive holds what is refused.
        ValueError: If the file is no archive of a known kind, or damaged.
        ModuleNotFoundError: If a ``.7z`` archive is met without py7zr.
    """
    target.mkdir(parents=True)
    name = archive.name.lower()
    try:
        if name.endswith(".7z"):
            _unpack_7z(archive, target)
        elif name.endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                infos = file.infolist()
                _write(archive, target, [_member_of_zip(info) for info in infos], lambda i: file.open(infos[i]))
        elif name.endswith(ARCHIVES):
            with tarfile.open(archive) as tar:
                entries = tar.getmembers()
                members = [_member_of_tar(entry) for entry in entries]
                _write(archive, target, members, lambda i: _content(tar, entries[i]))
        else:
            msg = f"{archive} is no archive of a known kind: {', '.join(ARCHIVES)}."
            raise ValueError(msg)
    except _DAMAGE as error:
        msg = f"{archive} can't be unpacked: {type(error).__name__}: {' '.join(str(error).split())}. Download it again."
        raise ValueError(msg) from error


def _member_of_zip(info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    kind = "folder" if info.is_dir() else "file" if mode in {0, stat.S_IFREG} else "other"
    return _Member(info.filename, info.file_size, kind)


def _member_of_tar(entry: tarfile.TarInfo) -> _Member:
    return _Member(entry.name, entry.size, "folder" if entry.isdir() else "file" if entry.isreg() else "other")


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(entry)
    if content is None:
        msg = f"{entry.name} has no content"
        raise tarfile.ReadError(msg)
    return content


def _write(archive: Path, target: Path, members: list[_Member], opened: Callable[[int], IO[bytes]]) -> None:
    places = _check(archive, target, members)
    for index, (member, place) in enumerate(zip(members, places, strict=True)):
        if member.kind == "folder":
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with opened(index) as source, place.open("xb") as destination:
            shutil.copyfileobj(source, destination)


def _check(archive: Path, target: Path, members: list[_Member]) -> list[Path]:
    """Where every entry goes, if all are safe."""
    taken: set[str] = set()
    parents: set[str] = set()
    places = []
    for member in members:
        path = PurePosixPath(member.name.replace("\\", "/"))
        outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(member.name).drive or "\0" in member.name
        if outside:
            _refuse(archive, f"its entry {member.name!r} lies outside of the archive's own folder")
        if member.kind == "other":
            _refuse(archive, f"its entry {member.name!r} is a link or device, no file")
        key = str(path).casefold()
        if member.kind == "file" and key in taken:
            _refuse(archive, f"two of its entries are for the same place, {member.name!r}")
        if member.kind == "file":
            taken.add(key)
        places.append(target / path)
        parents.update(str(parent).casefold() for parent in path.parents)
    if taken & parents:
        _refuse(archive, f"its entry {min(taken & parents)!r} is a file and a folder at once")
    size, room = sum(member.size for member in members), shutil.disk_usage(target).free
    if size > room:
        _refuse(archive, f"it unpacks to {size / 2**30:.1f} GiB, but {target.parent} has room for {room / 2**30:.1f}")
    return places


def _refuse(archive: Path, reason: str) -> None:
    msg = f"{archive} was not unpacked: {reason}. Take the archive from the place its makers name."
    raise UnsafeArchiveError(msg)


def _unpack_7z(archive: Path, target: Path) -> None:
    try:
        import py7zr
    except ModuleNotFoundError as error:
        msg = (
            f"{archive} is a 7z archive, which takes py7zr: pip install 'anomalib-inctrl[benchmarks]'. Or unpack it "
            "yourself (7z x) and name the folder."
        )
        raise ModuleNotFoundError(msg) from error
    try:
        with py7zr.SevenZipFile(archive) as file:
            plain = [not (f.is_symlink or f.is_junction or f.is_socket) for f in file.files]
            members = [
                _Member(f.filename, f.uncompressed, "folder" if f.is_directory else "file" if ok else "other")
                for f, ok in zip(file.files, plain, strict=True)
            ]
            _check(archive, target, members)
            file.extractall(target)  # noqa: S202 - every entry was checked
    except py7zr.exceptions.ArchiveError as error:
        msg = f"{archive} can't be unpacked: {type(error).__name__}: {error}. Download it again."
        raise ValueError(msg) from error
