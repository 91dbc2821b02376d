from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.blend import BlendPlan, SourcePlan
from megatron_ext.data.dataset import BlendedDataset, PackedSource, micro_batch_positions
from megatron_ext.data.indexed import bin_path, idx_path, write_index


def write_dataset(prefix, documents):
    tokens = np.concatenate([np.array(document, dtype=np.uint16) for document in documents])
    bin_path(prefix).write_bytes(tokens.tobytes())
    write_index(idx_path(prefix), np.array([len(document) for document in documents]), np.dtype(np.uint16))


def numbered_documents(lengths):
    """Documents whose tokens are all different, so that a token names its place."""
    ends = np.cumsum(lengths)
    return [list(range(end - length, end)) for length, end in zip(lengths, ends, strict=True)]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), seq_length=st.integers(2, 16),
       seed=st.integers(0, 5))
def test_one_pass_shows_every_token_once_and_predicts_its_successor(tmp_path_factory, lengths, seq_length, seed):
    prefix = tmp_path_factory.mktemp("data") / "train"
    write_dataset(prefix, numbered_documents(lengths))
    source = PackedSource(prefix, "a", seq_length, seed)
    successor = {}
    for epoch in range(2):
        shown = []
        for index in range(source.samples_per_epoch):
            sample = epoch * source.samples_per_epoch + index
            tokens, labels, mask, *_ = source.read(sample)
            passages = source.passages(sample)
            num_tokens = sum(passage.num_tokens for passage in passages)
            shown += tokens[:num_tokens].tolist()
            assert mask.sum() in (num_tokens, num_tokens - 1)  # only the last token of the pass predicts nothing
            assert not mask[num_tokens:].any()
            assert labels[:-1][mask[:-1] > 0].tolist() == tokens[1:][mask[:-1] > 0].tolist()
            for token, label, counted in zip(tokens, labels, mask, strict=True):
                if counted:
                    successor[epoch, int(token)] = int(label)
        assert sorted(shown) == list(range(sum(lengths)))
        assert len([key for key in successor if key[0] == epoch]) == sum(lengths) - 1


def test_passages_name_the_documents_of_a_sample(tmp_path):
    write_dataset(tmp_path / "train", numbered_documents([5, 3, 8]))
    source = PackedSource(tmp_path / "train", "a", 6, seed=0, shuffle=False)
    assert [(p.sequence, p.start, p.num_tokens) for p in source.passages(0)] == [(0, 0, 5), (1, 0, 1)]
    assert [(p.sequence, p.start, p.num_tokens) for p in source.passages(1)] == [(1, 1, 2), (2, 0, 4)]
    assert [(p.sequence, p.start, p.num_tokens) for p in source.passages(2)] == [(2, 4, 4)]


def test_order_depends_on_seed_name_and_epoch(tmp_path):
    write_dataset(tmp_path / "train", numbered_documents([7] * 20))

    def pass_of(seed=0, name="a", epoch=0):
        source = PackedSource(tmp_path / "train", name, 5, seed)
        first = epoch * source.samples_per_epoch
        return [source.read(first + index)[0].tolist() for index in range(source.samples_per_epoch)]

    assert pass_of() == pass_of()
    assert pass_of() != pass_of(seed=1)
    assert pass_of() != pass_of(name="b")
    assert pass_of() != pass_of(epoch=1)


@pytest.mark.parametrize(("micro_batch_size", "dp_size"), [(1, 1), (2, 1), (1, 2), (2, 4), (4, 2)])
def test_an_iteration_holds_the_same_samples_for_any_layout(micro_batch_size, dp_size):
    positions = [
        position
        for micro_batch in range(8 // (micro_batch_size * dp_size))
        for dp_rank in range(dp_size)
        for position in micro_batch_positions(3, micro_batch, global_batch_size=8, micro_batch_size=micro_batch_size,
                                              dp_rank=dp_rank, dp_size=dp_size)
    ]
    assert positions == list(range(24, 32))


def test_blended_dataset_follows_the_plan(tmp_path):
    write_dataset(tmp_path / "a", numbered_documents([10, 10]))
    write_dataset(tmp_path / "b", [[1000 + token for token in range(10)]])
    plan = BlendPlan((SourcePlan("a", 20, 4, 4), SourcePlan("b", 10, 2, 2)), seq_length=5)
    dataset = BlendedDataset(plan, [PackedSource(tmp_path / name, name, 5, seed=0) for name in "ab"])
    samples = [dataset[position] for position in range(len(dataset))]
    assert [sample.source for sample in samples] == plan.order.tolist()
    assert all((sample.tokens[0] >= 1000) == (sample.source == 1) for sample in samples)
    assert dataset.passages(int(np.argmax(plan.order)))[0] == "b"


@pytest.mark.parametrize("separate", [False, True], ids=["packed", "separate_documents"])
def test_exposure_equals_a_recount_of_every_sample(tmp_path, separate):
    write_dataset(tmp_path / "a", numbered_documents([13, 9, 16]))
    write_dataset(tmp_path / "b", [list(range(1000, 1021))])
    plan = BlendPlan((SourcePlan("a", 38, 8, 20), SourcePlan("b", 21, 5, 4)), seq_length=5)
    dataset = BlendedDataset(plan, [
        PackedSource(tmp_path / name, name, 5, seed=3, separate_documents=separate) for name in "ab"])
    recount = {"a": [], "b": []}
    masked, truncated = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for position in range(len(dataset) + 1):
        ledger = dataset.exposure(position)
        for name, tokens in recount.items():
            assert ledger[name]["seen_tokens"] == len(tokens)
            assert ledger[name]["unique_tokens"] == len(set(tokens))
            assert ledger[name]["masked_tokens"] == masked[name]
            assert ledger[name]["truncated_tokens"] == truncated[name]
        if position < len(dataset):
            name, passages = dataset.passages(position)
            shown = [(p.sequence, p.start + i) for p in passages for i in range(p.num_tokens)]
            recount[name] += shown
            masked[name] += len(shown) - int(dataset[position].mask.sum())
            truncated[name] += passages[0].num_tokens if passages[0].start else 0
    assert dataset.exposure(0)["a"]["planned_tokens"] == len(recount["a"])


def test_separate_documents_predict_nothing_of_each_other(tmp_path):
    write_dataset(tmp_path / "train", numbered_documents([5, 3, 6]))
    source = PackedSource(tmp_path / "train", "a", 7, seed=0, shuffle=False, separate_documents=True)
    first, second = source.read(0), source.read(1)
    assert first.documents.tolist() == [0] * 5 + [1] * 2
    assert first.mask.tolist() == [1, 1, 1, 1, 0, 1, 1]
    assert second.documents.tolist() == [0] + [1] * 6
    assert second.mask.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_missing_data_is_told(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        PackedSource(Path(tmp_path / "train"), "a", 5, seed=0)
