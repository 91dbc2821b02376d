"""A saved state of one Adam in the form of the other; whole runs that change it are in tests/te/test_grid.py."""

import pytest
import torch

from megatron_ext.training.optimizer_state import fit_to


def adamw():
    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


class FusedAdam(torch.optim.Optimizer):
    """Has the settings of Transformer Engine's that torch's lacks."""

    def __init__(self):
        super().__init__([torch.nn.Parameter(torch.zeros(1))], {"lr": 1e-3, "bias_correction": True})


def saved(kind, step):
    """What the optimizer in float32, that of bfloat16 and the distributed one keep, without the tensors."""
    group = {"lr": 0.5, "params": [0]} | ({"step": step} if step and kind != "adamw" else {})
    inner = {"param_groups": [group, dict(group)], "state": {0: {}}}
    if step and kind == "adamw":
        inner["state"]["common_step"] = torch.tensor(float(step))
    return inner


@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: {"optimizer": inner}], ids=["float32", "bfloat16"])
def test_the_count_of_updates_moves_to_where_the_other_keeps_it(wrap):
    to_fused, to_adamw = saved("adamw", 5), saved("fused", 5)
    fit_to(FusedAdam(), wrap(to_fused))
    assert [group["step"] for group in to_fused["param_groups"]] == [5, 5]
    assert all(isinstance(group["step"], int) for group in to_fused["param_groups"])  # its kernel takes no other
    assert all(group["bias_correction"] and group["lr"] == 0.5 for group in to_fused["param_groups"])
    assert "common_step" not in to_fused["state"]
    fit_to(adamw(), wrap(to_adamw))
    assert to_adamw["state"]["common_step"] == torch.tensor(5.0)
    assert all("step" not in group and group["lr"] == 0.5 for group in to_adamw["param_groups"])


def test_the_distributed_optimizer_keeps_it_in_its_groups():
    for adam, kind in ((FusedAdam(), int), (adamw(), float)):
        inner = saved("fused", 7.0)
        del inner["state"]
        fit_to(adam, {"optimizer": inner})
        assert [group["step"] for group in inner["param_groups"]] == [7, 7]
        assert all(isinstance(group["step"], kind) for group in inner["param_groups"])


@pytest.mark.parametrize("adam", [FusedAdam(), adamw()])
def test_before_the_first_update_there_is_no_count(adam):
    inner = saved("fused", None)
    fit_to(adam, inner)
    assert all("step" not in group for group in inner["param_groups"])
