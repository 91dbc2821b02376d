import random

import numpy as np
import pyarrow as pa

from megatron_ext.data.selection.near_duplicates import NearDuplicates, first_of_groups, signatures

WORDS = random.Random(0).choices([f"palavra{i}" for i in range(2_000)], k=400)
OTHER = random.Random(1).choices([f"palavra{i}" for i in range(2_000)], k=400)
NEAR = [*WORDS[:200], "trocada", *WORDS[201:]]  # 5 of 396 shingles differ


def bands(*texts):
    return signatures(pa.array([" ".join(words) for words in texts]), NearDuplicates())


def test_a_changed_word_makes_a_near_duplicate_and_another_text_does_not():
    assert first_of_groups(bands(WORDS, OTHER, NEAR)).tolist() == [True, True, False]
    assert first_of_groups(bands(NEAR, OTHER, WORDS)).tolist() == [True, True, False]


def test_a_signature_depends_on_its_text_alone():
    together, alone = bands(OTHER, WORDS), bands(WORDS)
    assert np.array_equal(together[1:], alone)
    assert np.array_equal(signatures(pa.array([" ".join(WORDS).upper()]), NearDuplicates()), alone)


def test_documents_linked_over_others_are_one_group():
    linked = np.array([[1, 10], [2, 20], [1, 20], [3, 30]], dtype=np.uint64)  # 0-2 by a band, 1-2 by the other
    assert first_of_groups(linked).tolist() == [True, False, False, True]


def test_without_documents():
    assert first_of_groups(np.empty((0, 14), np.uint64)).tolist() == []
    assert signatures(pa.array([None], pa.string()), NearDuplicates()).shape == (1, 14)
