"""Clusters of held-out documents, and the lengths of their samples."""

import numpy as np

from megatron_ext.data.windows import Document, Window, join_copies, padded_length


def document(id, cluster, text):
    return Document(id, cluster, len(text), np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64))


def test_copies_under_different_ids_are_one_cluster_with_all_that_belongs_to_them():
    documents = [document("a", "a", "one"), document("b", "b", "two"), document("c", "c", "one"),
                 document("c/easy", "c", "eins"), document("d", "d", "eins"), document("e", "e", "three")]
    assert [one.cluster for one in join_copies(documents)] == ["a", "b", "a", "a", "a", "e"]


def test_a_text_that_joins_two_clusters_joins_all_their_documents():
    documents = [document("a", "a", "one"), document("b", "b", "two"), document("b/easy", "b", "zwei"),
                 document("c", "c", "three"), document("c/easy", "c", "zwei"), document("a/easy", "a", "three")]
    assert {one.cluster for one in join_copies(documents)} == {"a"}


def test_samples_are_hardly_longer_than_their_windows_and_of_few_lengths():
    lengths = {padded_length(Window(0, 0, 0, number), 4096, 32) for number in range(1, 4097)}
    assert len(lengths) <= 24 and max(lengths) == 4096 and all(length % 32 == 0 for length in lengths)
    for number in range(1, 4097):
        assert number <= padded_length(Window(0, 0, 0, number), 4096, 32) < max(1.25 * number, number + 32)


def test_no_sample_is_longer_than_the_model_sees():
    assert padded_length(Window(0, 0, 0, 250), 256, 64) == 256
    assert padded_length(Window(0, 0, 0, 900), 1000, 32) == 1024  # the smallest that the layout can divide
