"""The archive of the demo voice is unpacked by hand: Python has the safe way from 3.11.4 on only."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from cosyserve.errors import WeightsError
from cosyserve.packed import extract, unpack


def archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:xz") as packed:
        for member in members:
            packed.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    made.size = 3 if kind == tarfile.REGTYPE else 0
    return made


def test_files_and_folders_are_written(tmp_path: Path) -> None:
    packed = archive(tmp_path / "a.tar.xz", member("one", tarfile.DIRTYPE), member("one/two/three"))
    extract(packed, tmp_path / "out")
    assert (tmp_path / "out/one/two/three").read_bytes() == b"xxx"


@pytest.mark.parametrize(
    "hostile",
    [
        member("../outside"),
        member("one/../../outside"),
        member("/outside"),
        member("link", tarfile.SYMTYPE, "/etc/passwd"),
        member("link", tarfile.LNKTYPE, "../outside"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE),
    ],
    ids=lambda each: f"{each.name} {each.type!r}",
)
def test_paths_outside_the_folder_are_refused_by_name(tmp_path: Path, hostile: tarfile.TarInfo) -> None:
    packed = archive(tmp_path / "a.tar.xz", hostile)
    (tmp_path / "in").mkdir()
    with pytest.raises(WeightsError, match=hostile.name):
        extract(packed, tmp_path / "in" / "out")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "in" / "outside").exists()


def test_a_missing_archive_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="none.tar.xz does not exist"):
        unpack(tmp_path / "none.tar.xz", tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\xfd7zXZ\x00 cut off"])
def test_a_damaged_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar.xz").write_bytes(content)
    with pytest.raises(WeightsError, match="a.tar.xz cannot be unpacked"):
        unpack(tmp_path / "a.tar.xz", tmp_path / "out")
