from types import SimpleNamespace

import huggingface_hub
import pytest

from tools import choose_rewriter


@pytest.fixture
def hub(monkeypatch):
    """answer(function): what the hub says when it is asked for a model."""
    def answer(function):
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda _self, model, **_: function(model))

    return answer


def test_a_hub_that_can_be_reached_gives_a_rewriter_and_its_size(hub, capsys):
    sizes = {"model.safetensors": 988_000_000, "tokenizer.json": 7_000_000, "README.md": 5, "onnx/model.onnx": 9**12}
    hub(lambda model: SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size)
                                                for name, size in sizes.items()]))
    assert choose_rewriter.main([]) == 0
    told = capsys.readouterr()
    assert told.out == "Qwen/Qwen2.5-0.5B-Instruct\n"
    assert "a download of 995 MB" in told.err


def test_without_a_hub_there_is_none(hub, capsys):
    def fail(model):
        raise ConnectionError("Name or service not known")

    hub(fail)
    assert choose_rewriter.main([]) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert "no model hub can be reached" in told.err
