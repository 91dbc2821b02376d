"""Clusters of held-out documents."""

import numpy as np

from megatron_ext.data.windows import Document, join_copies


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
