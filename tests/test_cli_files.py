"""Atomic writing."""

import os
import stat

import pytest

from pursamere._files import atomic_writer, write_bytes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_while_another_does(path):
    with atomic_writer(path, overwrite=False) as stream:
        stream.write(b"new")
        path.write_bytes(b"another's")


def fail_half_way(path):
    with atomic_writer(path, overwrite=True) as stream:
        stream.write(b"half")
        raise RuntimeError


@pytest.mark.parametrize("overwrite", [False, True])
def test_writes_a_new_file_and_leaves_nothing_else(tmp_path, overwrite):
    write_bytes(tmp_path / "a", b"new", overwrite=overwrite)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_overwrites_when_told(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    write_bytes(tmp_path / "a", b"new", overwrite=True)
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_refuses_to_overwrite_otherwise(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(FileExistsError, match="exists"):
        write_bytes(tmp_path / "a", b"new", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_refuses_a_file_that_appears_while_writing(tmp_path):
    with pytest.raises(FileExistsError, match="exists"):
        write_while_another_does(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"another's"
    assert names(tmp_path) == ["a"]


def test_an_error_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        fail_half_way(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with atomic_writer(tmp_path / "a", overwrite=True) as stream:
        stream.write(b"new")
        stream.flush()
        assert (tmp_path / "a").read_bytes() == b"old"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"old")
    (tmp_path / "a").symlink_to("elsewhere")
    write_bytes(tmp_path / "a", b"new", overwrite=True)
    assert (tmp_path / "elsewhere").read_bytes() == b"old"
    assert not (tmp_path / "a").is_symlink()


def test_a_dangling_link_counts_as_existing(tmp_path):
    (tmp_path / "a").symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "a", b"new", overwrite=False)
    assert not (tmp_path / "nowhere").exists()


def test_the_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"new", overwrite=False)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_without_hard_links(tmp_path, monkeypatch):
    def no_link(*_, **__):
        raise PermissionError("not on this file system")

    monkeypatch.setattr(os, "link", no_link)
    write_bytes(tmp_path / "a", b"new", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"new"
    with pytest.raises(FileExistsError):
        write_while_another_does(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"another's"
    assert names(tmp_path) == ["a", "b"]
