"""What a checkpoint looks like to the other version of megatron-core."""

import re
from pathlib import Path

import torch

from megatron_ext.model.distributed import single_process
from megatron_ext.model.versions import save_checkpoint


def state(weight):
    from megatron.core.dist_checkpointing import ShardedTensor

    return {"weight": ShardedTensor.from_rank_offsets("weight", weight), "scheduler": {"num_steps": 3}}


def test_what_is_no_tensor_is_in_a_file_that_both_versions_read(tmp_path):
    from megatron.core import dist_checkpointing

    with single_process():
        assert save_checkpoint(state(torch.ones(3)), tmp_path, content_metadata={"form": "one"}) is None
        loaded = dist_checkpointing.load(state(torch.zeros(3)), str(tmp_path))
    assert loaded["weight"].tolist() == [1, 1, 1]
    assert loaded["scheduler"] == {"num_steps": 3}
    common = torch.load(tmp_path / "common.pt", weights_only=True)
    assert common == {"scheduler": {"num_steps": 3}, "content_metadata": {"form": "one"}}


def test_transformer_engine_is_tested_in_the_version_that_is_installed():
    root = Path(__file__).parents[2]
    pins = {re.search(r"^transformer-engine.*==([\d.]+)$", (root / name).read_text(), re.MULTILINE)[1]
            for name in ("requirements-gpu.txt", "tests/te/requirements.txt")}
    assert len(pins) == 1
