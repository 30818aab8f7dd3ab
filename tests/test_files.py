from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import densenet_deploy
from densenet_deploy.errors import DeployError
from densenet_deploy.files import replacing_directory, replacing_file, sha256

PACKAGE_PARENT = Path(densenet_deploy.__file__).parents[1]


class Interrupted(Exception):
    pass


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_file_appears_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "new.bin"
    with replacing_file(path) as temporary:
        temporary.write_bytes(b"new")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across file systems is not atomic
    assert path.read_bytes() == b"new"
    assert names(path.parent) == {"new.bin"}


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with replacing_file(tmp_path / "file") as temporary:
            temporary.write_bytes(b"x")
        assert os.umask(umask) == umask  # reading the mask has not changed it
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_failure_keeps_the_old_file_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(Interrupted), replacing_file(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise Interrupted
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"file"}


def test_an_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError) as caught, replacing_file(tmp_path / "taken") as temporary:
        temporary.write_text("new")
    assert caught.value.filename == str(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_killed_writer_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = (
        "import sys, time, pathlib\n"
        "from densenet_deploy.files import replacing_file\n"
        "with replacing_file(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'half of the n')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=PACKAGE_PARENT
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"old"


def is_ours(path: Path) -> bool:
    return (path / "manifest.json").exists()


def test_directory_replaces_all_of_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for contents in ({"manifest.json", "first"}, {"manifest.json", "second"}):
        with replacing_directory(path, is_ours) as temporary:
            for name in contents:
                (temporary / name).write_text(name)
        assert names(path) == contents
    assert names(tmp_path) == {"bundle"}


def test_directory_fills_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with replacing_directory(tmp_path / "empty", is_ours) as temporary:
        (temporary / "manifest.json").touch()
    assert names(tmp_path / "empty") == {"manifest.json"}


def test_directory_failure_keeps_the_old_one_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "manifest.json").write_text("old")
    with pytest.raises(Interrupted), replacing_directory(path, is_ours) as temporary:
        (temporary / "manifest.json").write_text("new")
        raise Interrupted
    assert (path / "manifest.json").read_text() == "old"
    assert names(tmp_path) == {"bundle"}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_foreign_path_is_refused_and_untouched(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thesis"
    if kind == "folder":
        path.mkdir()
    kept = path / "chapter.tex" if kind == "folder" else path
    kept.write_text("years of work")
    entered = False
    with (
        pytest.raises(DeployError, match=r"thesis exists .* expected .* earlier output"),
        replacing_directory(path, is_ours),
    ):
        entered = True
    assert not entered  # refused before the work is done, not after
    assert kept.read_text() == "years of work"
    assert names(tmp_path) == {"thesis"}


def test_sha256_of_published_vectors(tmp_path: Path) -> None:
    # FIPS 180-2, appendix B: "abc" and a million times "a" (longer than any read buffer)
    vectors = {
        b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        b"a" * 10**6: "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
    }
    for message, digest in vectors.items():
        (tmp_path / "message").write_bytes(message)
        assert sha256(tmp_path / "message") == digest
