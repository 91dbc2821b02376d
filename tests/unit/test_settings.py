import pytest

from megatron_ext.errors import UserError
from megatron_ext.settings import Settings, describe, load_settings


class Inner(Settings):
    lr: float = 1e-5
    """Peak learning rate."""


class Outer(Settings):
    steps: int
    """How many."""
    inner: Inner = Inner()


def test_file_base_and_overrides_in_this_order(tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 1\ninner: {lr: 1.0}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\nsteps: 2\n")
    assert load_settings(Outer, tmp_path / "top.yaml") == Outer(steps=2, inner=Inner(lr=1.0))
    assert load_settings(Outer, tmp_path / "top.yaml", ["inner.lr=1e-4"]).inner.lr == 1e-4


def test_all_mistakes_at_once_with_the_nearest_known_name():
    with pytest.raises(UserError) as error:
        load_settings(Outer, None, ["inner.lrr=1", "stepz=2", "lr=1"])
    message = str(error.value)
    assert "'steps' is missing" in message
    assert "unknown key 'inner.lrr'; did you mean 'lr'?" in message
    assert "unknown key 'stepz'; did you mean 'steps'?" in message
    assert "unknown key 'lr'; did you mean 'inner.lr'?" in message


def test_wrong_type_names_key_and_value():
    with pytest.raises(UserError, match="steps = 'many'"):
        load_settings(Outer, None, ["steps=many"])


@pytest.mark.parametrize("text", ["steps: [", "- 1\n- 2\n"])
def test_a_file_that_is_no_settings_file(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        load_settings(Outer, tmp_path / "bad.yaml")


def test_missing_file_and_malformed_override(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(Outer, tmp_path / "absent.yaml")
    with pytest.raises(UserError, match=r"section\.key=value"):
        load_settings(Outer, None, ["steps"])


def test_help_lists_every_field_with_its_meaning():
    text = describe(Outer)
    assert "steps: How many. (required)" in text
    assert "inner.lr: Peak learning rate. (default 1e-05)" in text
