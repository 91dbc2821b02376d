"""How often an iteration makes the host wait for a GPU: once; counted on a CPU (tests/cpu/waiting.py says how)."""

import json
from pathlib import Path

import pytest

from tests.cpu.launch import run_distributed
from tests.cpu.test_grid import APART, PP2, VPP2, settings
from tests.cpu.waiting import BLOCKING_COPY, COPY, TOO_EARLY, WAIT

# Copies to the device of rank 0 and 1: tokens, labels, mask and, where documents are apart, their numbers of each
# micro-batch, then the sources of all. First stages read tokens alone, last ones labels and mask, others nothing.
COPIES = {"dp2": (2 * 3 + 1, 2 * 3 + 1), "dp2_documents": (2 * 4 + 1, 2 * 4 + 1), "pp2_vpp2": (4, 2 * 4 + 1)}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    base = settings(tmp_path_factory.mktemp("waiting")) | {"validation": {}}
    base["train"]["budget_tokens"] = 3 * 8 * 32
    run_distributed("tests.cpu.cases_waiting:count_waits", 2, base=base, variants={
        "dp2": {}, "dp2_documents": {"data": APART}, "pp2_vpp2": {"parallel": PP2 | VPP2}})
    return [json.loads(Path(base["output"], f"counted-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", COPIES)
def test_an_iteration_waits_for_the_gradient_norm_alone(counted, variant):
    for rank in (0, 1):
        row = counted[rank][variant]
        assert row["loop"].keys() <= {COPY}, row["places"]
        assert row["iteration"] == {WAIT: 1, COPY: COPIES[variant][rank]}, row["places"]
        assert "get_grad_norm" in row["places"][0]


def test_the_tracker_sees_what_would_wait():
    import torch

    from tests.cpu.waiting import Tracker

    device, tracker = torch.device("cpu"), Tracker()
    with tracker:
        there = torch.arange(4).to(device, non_blocking=True) + 1
        coming = there.sum().to("cpu", non_blocking=True)
        assert tracker.counts == {COPY: 1}
        coming.item()
        assert tracker.counts == {COPY: 1, TOO_EARLY: 1}
        assert bool(there[0]), there.tolist()  # the message is not made
        assert tracker.counts == {COPY: 1, TOO_EARLY: 1, WAIT: 1}
        coming.item()
        there.nonzero(), there[there > 2], there.cpu(), torch.tensor(1.0).item()
        torch.tensor([1], device=device)
        torch.arange(4).to(device)
    assert tracker.counts == {COPY: 1, TOO_EARLY: 1, WAIT: 4, BLOCKING_COPY: 2}
