"""What a checkpoint looks like to the other version of megatron-core."""

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor

from megatron_ext.model.distributed import single_process
from megatron_ext.model.versions import save_checkpoint


def state(weight):
    return {"weight": ShardedTensor.from_rank_offsets("weight", weight), "scheduler": {"num_steps": 3}}


def test_what_is_no_tensor_is_in_a_file_that_both_versions_read(tmp_path):
    with single_process():
        assert save_checkpoint(state(torch.ones(3)), tmp_path, content_metadata={"form": "one"}) is None
        loaded = dist_checkpointing.load(state(torch.zeros(3)), str(tmp_path))
    assert loaded["weight"].tolist() == [1, 1, 1]
    assert loaded["scheduler"] == {"num_steps": 3}
    common = torch.load(tmp_path / "common.pt", weights_only=True)
    assert common == {"scheduler": {"num_steps": 3}, "content_metadata": {"form": "one"}}
