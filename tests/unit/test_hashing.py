"""Files that are hashed while they are written."""

import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext import hashing
from megatron_ext.hashing import HashedFile, hash_new_file


@given(st.lists(st.integers(0, 3_000_000), max_size=4))
@settings(max_examples=15, deadline=None)
def test_bytes_and_hash_are_those_written(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("hashed") / "file"
    pieces = [np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8) for size in sizes]
    with HashedFile(path) as file:
        for piece in pieces:
            assert file.write(piece) == len(piece)
        assert file.tell() == sum(sizes)
    content = b"".join(piece.tobytes() for piece in pieces)
    assert path.read_bytes() == content
    assert hash_new_file(path) == hashlib.sha256(content).hexdigest()


@pytest.fixture
def written(tmp_path):
    with HashedFile(tmp_path / "file") as file:
        file.write(b"one")
    return tmp_path / "file"


def test_a_written_file_is_not_read_again_even_when_it_moved(written, monkeypatch):
    moved = written.rename(written.with_name("moved"))
    monkeypatch.setattr(hashing.hashlib, "file_digest", None)
    assert hash_new_file(moved) == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b"other bytes"),
                                    lambda path: (path.write_bytes(b"two"), os.utime(path, (1, 1)))])
def test_a_changed_file_is_read_again(written, change):
    change(written)
    assert hash_new_file(written) == hashlib.sha256(written.read_bytes()).hexdigest()


def test_nothing_appears_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), HashedFile(tmp_path / "file") as file:
        file.write(b"one")
        raise ZeroDivisionError
    assert not (tmp_path / "file").exists()
