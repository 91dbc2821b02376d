import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_ext.data.selection.rules import parse_rule
from megatron_ext.errors import UserError

NAMES = ("stem", "edu")


def holds(text, **scores):
    arrays = {name: np.array([value], dtype=np.float64) for name, value in scores.items()}
    return bool(parse_rule(text, NAMES).holds(arrays)[0])


def rules(depth=3):
    number = st.one_of(st.sampled_from(NAMES), st.floats(-9, 9, allow_nan=False).map(str))
    compare = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    comparison = st.tuples(number, compare, number, compare, number).map(" ".join)
    return st.recursive(comparison, lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        inner.map(lambda text: f"(not {text})")), max_leaves=depth)


@settings(deadline=None)
@given(rules().filter(lambda text: "stem" in text or "edu" in text), st.floats(0, 5), st.floats(0, 5))
def test_a_rule_means_what_python_says(text, stem, edu):
    assert holds(text, stem=stem, edu=edu) is eval(text, {"stem": stem, "edu": edu})


@pytest.mark.parametrize(("stem", "edu", "both", "either"), [
    (0.5, 2.0, True, True), (0.49, 2.0, False, True), (2.5, 0.4, False, False), (float("nan"), 1.0, False, True),
])
def test_the_study_rules(stem, edu, both, either):
    assert holds("0.5 <= stem <= 2.0 and 0.5 <= edu <= 2.0", stem=stem, edu=edu) is both
    assert holds("0.5 <= stem <= 2.0 or 0.5 <= edu <= 2.0", stem=stem, edu=edu) is either


def test_names_are_those_that_are_read():
    assert parse_rule("stem > 1 or stem < 0.5", NAMES).names == {"stem"}


@pytest.mark.parametrize(("text", "message"), [
    ("stem > 2.5 or", "cannot be read"),
    ("", "cannot be read"),
    ("stem", "is not a comparison"),
    ("stem and edu > 1", "'stem' is not a comparison"),
    ("stem > 1 < True", "neither a score name nor a number"),
    ("stem in edu", "is not a comparison"),
    ("__import__('os').system('true')", "is not a comparison"),
    ("stem > __import__('os')", "text is compared by"),
    ("stem > 'a'", "text is compared by"),
    ("'a' == 'b'", "text is compared by"),
    ("stem == 'a' and stem > 2", "compares stem with text and with numbers"),
    ("stem in []", "needs a list of numbers, or of texts"),
    ("stem in [1, 'a']", "needs a list of numbers, or of texts"),
    ("stem + 1 in ['a']", "is not the name of a column of text"),
    ("stem ** 2 > 1", "neither a score name nor a number"),
    ("stem + 'a' > 1", "text is compared by"),
    ("stem is 3", "is not a comparison"),
    ("stem + 1 is null", "is not a comparison"),
    ("1" * 5_000 + " < stem", "cannot be read"),
    ("stem < " + "1" + "0" * 400, "cannot be read"),
    ("stem > " + "+".join(["edu"] * 5_000), "cannot be read"),
    ("stm > 2.5", "names stm; the scores are: edu, stem"),
    ("1 < 2", "reads no score"),
    ("(" * 500 + "stem > 1" + ")" * 500, "cannot be read"),
])
def test_what_is_no_rule_is_refused(text, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        parse_rule(text, NAMES)


def column(values):
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def test_arithmetic_lists_and_null():
    scores = {"stem": column([1, 3, None, 0]), "edu": column([2, 0.5, 3, 0])}
    nulls = {"stem": np.array([False, False, True, False]), "edu": np.zeros(4, dtype=bool)}

    def where(text):
        return np.flatnonzero(parse_rule(text, NAMES).holds(scores, nulls)).tolist()

    assert where("stem + edu > 2.9") == [0, 1]
    assert where("2 * stem - edu / 2 >= 1") == [0, 1]
    assert where("stem in [1, 0]") == [0, 3]
    assert where("stem not in (1, 0)") == [1, 2]
    assert where("stem is null") == [2]
    assert where("stem is not None and edu in {2, 0}") == [0, 3]
    assert where("stem is null or stem > 2") == [1, 2]
    assert where("stem / edu > 1") == [1]  # 0 / 0 is NaN, which is not more than 1
    assert parse_rule("stem is null or stem > 2", NAMES).nullable == {"stem"}


def test_columns_of_text():
    values = {"lang": pa.array(["pt", "en", None, "gl"]), "stem": column([1, 1, 1, 0])}
    nulls = {"lang": np.array([False, False, True, False]), "stem": np.zeros(4, dtype=bool)}

    def where(text):
        return np.flatnonzero(parse_rule(text, ["lang", "stem"]).holds(values, nulls)).tolist()

    assert where("lang == 'pt'") == where("'pt' == lang") == [0]
    assert where("lang != 'pt'") == [1, 2, 3]
    assert where("lang in ['pt', 'gl'] and stem > 0") == [0]
    assert where("lang not in ['pt', 'gl']") == [1, 2]
    assert where("lang is null") == [2]
    assert parse_rule("lang is null or stem > 0", ["lang", "stem"]).labels == {"lang"}
