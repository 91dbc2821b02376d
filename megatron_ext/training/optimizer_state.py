"""A saved state of Adam in the form of the Adam that is here.

megatron-core takes Transformer Engine's FusedAdam (or apex's) where it is installed, else torch.optim.AdamW. Their
moments are saved alike. But FusedAdam counts updates in its parameter groups, as a whole number, AdamW in the state of
every parameter; and each has settings in its groups that the other lacks.
"""

from __future__ import annotations

from typing import Any

import torch

_OWN_SETTINGS = ("max_lr", "min_lr", "betas", "eps")
"""The same in all groups, and never those of the run that saved them."""


def fit_to(adam: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Change a loaded state, as megatron-core's optimizers save it, so that they can go on with it in `adam`.

    Symptoms: KeyError 'bias_correction' or 'step'; or, without an error, a count of updates that begins anew.
    """
    inner = saved.get("optimizer", saved)  # what the optimizer in float32 saves has no such part
    groups, state = inner["param_groups"], inner.get("state")
    counts = [group["step"] for group in groups if "step" in group]
    if state is not None and "common_step" in state:
        counts = [state.pop("common_step")]
    for group in groups:
        for name, value in adam.defaults.items():
            group.setdefault(name, value)
        group.update({name: adam.param_groups[0][name] for name in _OWN_SETTINGS if name in adam.param_groups[0]})
    if not counts:  # saved before the first update
        return
    if not isinstance(adam, torch.optim.AdamW):
        _set_step(groups, int(counts[0]))
    elif state is None:  # the distributed optimizer reads it from the groups
        _set_step(groups, float(counts[0]))
    else:
        state["common_step"] = torch.tensor(float(counts[0]))
        for group in groups:
            group.pop("step", None)


def _set_step(groups: list[dict[str, Any]], step: float) -> None:
    for group in groups:
        group["step"] = step
