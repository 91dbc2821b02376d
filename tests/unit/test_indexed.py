import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data import indexed
from megatron_ext.data.indexed import IndexedReader, bin_path, idx_path, token_dtype, write_index
from megatron_ext.errors import UserError

documents_of_ids = st.lists(st.lists(st.integers(0, 60_000), max_size=5), max_size=12)


def write(prefix, documents, dtype=np.uint16):
    flat = [token for document in documents for token in document]
    bin_path(prefix).write_bytes(np.array(flat, dtype=dtype).tobytes())
    write_index(idx_path(prefix), np.array([len(document) for document in documents], dtype=np.int64), np.dtype(dtype))
    return prefix


@settings(deadline=None, max_examples=50)
@given(documents_of_ids, st.sampled_from([np.uint16, np.int32]))
def test_the_bytes_are_megatrons(tmp_path_factory, documents, dtype):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    folder = tmp_path_factory.mktemp("data")
    ours, theirs = write(folder / "ours", documents, dtype), folder / "theirs"
    builder = megatron.IndexedDatasetBuilder(str(bin_path(theirs)), dtype=dtype)
    for document in documents:
        builder.add_document(document, [len(document)] if document else [])
    builder.finalize(str(idx_path(theirs)))
    assert idx_path(ours).read_bytes() == idx_path(theirs).read_bytes()
    assert bin_path(ours).read_bytes() == bin_path(theirs).read_bytes()


@pytest.mark.parametrize("vocab_size", [1, 65_499, 65_500, 128_256])
def test_the_integer_type_is_megatrons(vocab_size):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert token_dtype(vocab_size) == np.dtype(megatron.DType.optimal_dtype(vocab_size))


def test_megatron_reads_what_we_write(tmp_path):
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    prefix = write(tmp_path / "data", [[1, 2, 3], [], [4]])
    dataset = megatron.IndexedDataset(str(prefix))
    assert [list(sequence) for sequence in dataset] == [[1, 2, 3], [4]]
    assert list(dataset.document_indices) == [0, 1, 1, 2]


@settings(deadline=None, max_examples=50)
@given(documents_of_ids)
def test_what_is_written_is_read(tmp_path_factory, documents):
    reader = IndexedReader(write(tmp_path_factory.mktemp("data") / "a.b", documents))
    present = [document for document in documents if document]
    assert [reader.read(i).tolist() for i in range(len(reader))] == present
    assert reader.num_documents == len(documents)
    assert reader.num_tokens == sum(map(len, documents))
    assert reader.largest_token_id(chunk_tokens=3) == max((max(document) for document in present), default=-1)
    boundaries = reader.document_boundaries
    assert [boundaries[i + 1] > boundaries[i] for i in range(len(documents))] == [bool(d) for d in documents]


def test_a_part_of_a_sequence(tmp_path):
    reader = IndexedReader(write(tmp_path / "data", [[1, 2], [3, 4, 5, 6]]))
    assert reader.read(1, 1, 2).tolist() == [4, 5]
    assert reader.read(1, 4).tolist() == []
    with pytest.raises(IndexError):
        reader.read(0, 1, 2)


def damage_version(idx):
    return idx[:9] + b"\x02" + idx[10:]


@pytest.mark.parametrize(("damage", "message"), [
    (lambda idx: b"", "idx is truncated: 0 bytes"),
    (lambda idx: idx[:20], "idx is truncated: 20 bytes"),
    (lambda idx: b"NOTANIDX\x00" + idx[9:], "is not a Megatron index"),
    (damage_version, "index version 2"),
    (lambda idx: idx[:17] + b"\x63" + idx[18:], "integer type code 99"),
    (lambda idx: idx[:17] + b"\x04" + idx[18:], "offsets do not follow"),
    (lambda idx: idx[:-8], "idx is truncated: .* but 2 sequences and 3 document boundaries take"),
    (lambda idx: idx + b"\0" * 7, "idx has bytes too many"),
    (lambda idx: idx + b"\0" * 2, "multimodal"),
    (lambda idx: idx[:34] + b"\x02" + idx[35:], "offsets do not follow"),
    (lambda idx: idx[:-8] + b"\x07" + idx[-7:], "document boundaries do not run"),
    (lambda idx: idx[:38] + b"\x09" + idx[39:], "bin is truncated: 10 bytes, but its index describes 24"),
])
def test_a_damaged_index_is_named(tmp_path, damage, message):
    prefix = write(tmp_path / "data", [[1, 2, 3], [4, 5]])
    idx_path(prefix).write_bytes(damage(idx_path(prefix).read_bytes()))
    with pytest.raises(UserError, match=message):
        IndexedReader(prefix)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: data[:-1], "bin is truncated: 9 bytes, but its index describes 10"),
    (lambda data: data + b"\0\0", "bin has bytes too many"),
])
def test_a_damaged_bin_is_named(tmp_path, damage, message):
    prefix = write(tmp_path / "data", [[1, 2, 3], [4, 5]])
    bin_path(prefix).write_bytes(damage(bin_path(prefix).read_bytes()))
    with pytest.raises(UserError, match=message):
        IndexedReader(prefix)


def test_a_missing_file_is_named(tmp_path):
    prefix = write(tmp_path / "data", [[1]])
    bin_path(prefix).unlink()
    with pytest.raises(UserError, match=r"data\.bin does not exist"):
        IndexedReader(prefix)


@given(documents_of_ids, st.integers(1, 4))
def test_an_index_written_in_pieces_is_the_same(tmp_path_factory, documents, size):
    folder = tmp_path_factory.mktemp("data")
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    pieces = (lengths[start:start + size] for start in range(0, len(lengths), size))
    write_index(folder / "pieces.idx", pieces, np.dtype(np.uint16))
    write_index(folder / "whole.idx", lengths, np.dtype(np.uint16))
    assert (folder / "pieces.idx").read_bytes() == (folder / "whole.idx").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["pieces.idx", "whole.idx"]


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_a_large_index_is_checked_in_pieces(tmp_path, monkeypatch, together):
    monkeypatch.setattr(indexed, "_CHECKED_TOGETHER", together)
    prefix = write(tmp_path / "data", [[1, 2], [], [3], [4, 5, 6], [7], []])
    assert IndexedReader(prefix).document_ends(0, 6).tolist() == [2, 2, 3, 6, 7, 7]
    index = bytearray(idx_path(prefix).read_bytes())
    index[34 + 4 * 4 + 8 * 2] ^= 1  # the offset of sequence 2
    idx_path(prefix).write_bytes(index)
    with pytest.raises(UserError, match="first at sequence 2"):
        IndexedReader(prefix)
    index[34 + 4 * 4 + 8 * 2] ^= 1
    index[-8 * 3] ^= 3  # the boundary behind document 3: 3 becomes 0
    idx_path(prefix).write_bytes(index)
    with pytest.raises(UserError, match="document boundaries do not run"):
        IndexedReader(prefix)
