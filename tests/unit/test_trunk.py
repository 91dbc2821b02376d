"""What a branch takes from its trunk, told without torch: folders are made as the trainer makes them."""

import json
import shutil
from random import Random

import pytest

from megatron_ext.artifacts import publish_in_place, write_json
from megatron_ext.config import RunConfig
from megatron_ext.data.provenance import open_run_data
from megatron_ext.errors import UserError
from megatron_ext.settings import overlay, validate
from megatron_ext.training.ledger import Ledger
from megatron_ext.training.preflight import check_run, describe_run, source_sizes
from megatron_ext.training.resume import begin, find_start
from megatron_ext.training.run_folder import LATEST, RUN_STATE, checkpoint_folder, is_kept, run_identity, run_inputs
from megatron_ext.training.trunk import plan_run
from tests.cpu.tiny import make_tokenized
from tests.damage import HARMS, delete
from tests.unit.test_preflight import LLAMA

TOKENS = 8 * 32  # of an iteration


class Lab:
    """A model without weights, three sources, and runs whose checkpoints hold what a branch reads."""

    def __init__(self, folder):
        self.folder = folder
        self.model("model", LLAMA)
        for seed, name in enumerate("abc"):
            make_tokenized(folder / name, seed, num_documents=120)

    def model(self, name, config, tokenizer="the tokenizer"):
        (self.folder / name).mkdir()
        (self.folder / name / "config.json").write_text(json.dumps(config))
        (self.folder / name / "tokenizer.json").write_text(tokenizer)
        return str(self.folder / name)

    def config(self, name="trunk", **changes):
        source = {"path": str(self.folder / "a"), "fraction": 0.7}
        values = {
            "output": str(self.folder / name), "model": {"hf_folder": str(self.folder / "model")},
            "data": {"seq_length": 32, "sources": {"a": source, "b": {"path": str(self.folder / "b"), "fill": True}}},
            "train": {"budget_tokens": 10 * TOKENS, "global_batch_size": 8},
            "schedule": {"style": "WSD", "warmup_iters": 1, "decay_iters": 3}}
        return validate(RunConfig, overlay(values, changes), name)

    def branch(self, trunk, name="branch", **changes):
        return self.config(name, **overlay({"start": {"checkpoint": str(trunk)}}, changes))

    def save(self, config, iteration):
        folder = checkpoint_folder(config, iteration)
        folder.mkdir(parents=True)
        identity = run_identity(config)
        ledger = Ledger(config, self.dataset(config), identity)
        (folder / "weights.distcp").write_text(f"{config.output.name} {iteration}")
        shutil.copytree(config.model.hf_folder, folder / "hf")
        write_json(folder / RUN_STATE, {"iteration": iteration, "identity": identity,
                                        "data": ledger.what_was_read(iteration)})
        publish_in_place(folder, kind="checkpoint", settings={}, inputs=run_inputs(config), counts={})
        (folder.parent / LATEST).write_text(folder.name + "\n")
        return folder

    def dataset(self, config):
        return open_run_data(config, plan_run(config, source_sizes(config)))

    def exposure(self, config, iteration):
        return Ledger(config, self.dataset(config), run_identity(config)).at(iteration)["sources"]


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def shown(dataset, start, end):
    """(source, tokens of the sample) at positions."""
    return [(dataset.sources[sample.source].reader.prefix.parent.name, sample.tokens.tolist())
            for sample in (dataset[position] for position in range(start, end))]


AMOUNTS = {
    "shares": {},
    "rounded shares": {"a": {"fraction": 0.33}},
    "counted": {"a": {"fraction": None, "tokens": 30 * 32}},
    "passes": {"a": {"fraction": None, "epochs": 0.2}},
}


@pytest.mark.parametrize("amounts", AMOUNTS)
@pytest.mark.parametrize("leaves_at", [1, 5, 9])
def test_an_unchanged_branch_goes_on_with_the_samples_and_the_ledger_of_its_trunk(lab, amounts, leaves_at):
    data = {"data": {"sources": AMOUNTS[amounts]}}
    trunk = lab.config(**data)
    branch = lab.branch(lab.save(trunk, leaves_at), **data)
    assert shown(lab.dataset(branch), 8 * leaves_at, 80) == shown(lab.dataset(trunk), 8 * leaves_at, 80)
    for iteration in (leaves_at, 10):
        assert lab.exposure(branch, iteration) == lab.exposure(trunk, iteration)
    assert lab.dataset(branch).plan.num_samples == 80 - 8 * leaves_at


def test_a_larger_budget_by_shares_goes_on_as_if_it_had_been_so_from_the_start(lab):
    trunk = lab.config(data={"sources": {"a": {"fraction": 0.33}}})
    longer = {"train": {"budget_tokens": 17 * TOKENS}, "data": {"sources": {"a": {"fraction": 0.33}}}}
    branch = lab.branch(lab.save(trunk, 7), **longer)
    assert shown(lab.dataset(branch), 56, 136) == shown(lab.dataset(lab.config("long", **longer)), 56, 136)
    assert lab.exposure(branch, 17) == lab.exposure(lab.config("long", **longer), 17)


def test_other_amounts_in_tokens_are_of_the_branchs_own_part(lab):
    trunk = lab.config()
    branch = lab.branch(lab.save(trunk, 5), data={"sources": {"a": {"fraction": None, "tokens": 10 * 32}}})
    plan = lab.dataset(branch).plan
    assert [source.num_samples for source in plan.sources] == [10, 30]
    before = lab.dataset(trunk).plan.samples_seen(40)
    assert [source.num_before for source in plan.sources] == list(before.values())
    with pytest.raises(UserError, match=r"the run takes 1,280 .*less 1,280 of the trunk"):
        plan_run(lab.branch(lab.folder / "trunk/checkpoints/iter_0000005", data={"sources": {
            "a": {"fraction": None, "tokens": 320}, "b": {"fill": False, "tokens": 320}}}), source_sizes(trunk))


def test_a_source_is_known_by_its_bytes(lab):
    """Under another name it goes on; other bytes under its name begin."""
    trunk = lab.config()
    checkpoint = lab.save(trunk, 5)
    renamed = lab.branch(checkpoint).model_dump(mode="json")
    renamed["data"]["sources"] = {"x": renamed["data"]["sources"]["a"], "b": {"path": str(lab.folder / "c"),
                                                                              "fill": True}}
    config = validate(RunConfig, renamed, "renamed")
    plan = lab.dataset(config).plan
    assert [(source.name, source.num_before) for source in plan.sources] == [("x", 28), ("b", 0)]
    a_tokens = [tokens for source, tokens in shown(lab.dataset(config), 40, 80) if source == "a"]
    assert a_tokens == [tokens for source, tokens in shown(lab.dataset(trunk), 40, 80) if source == "a"]
    ledger = lab.exposure(config, 10)
    assert {name: entry["samples"] for name, entry in ledger.items()} == {"x": 56, "b": 12, "b (trunk)": 12}


def test_every_seed_deals_out_what_is_left_without_a_repetition(lab):
    """A chain of branches with seeds of their own; over two passes of a small source."""
    small = make_tokenized(lab.folder / "small", 9, num_documents=40)
    data = {"data": {"sources": {"a": {"path": str(small), "max_epochs": 9}, "b": {"max_epochs": 9}}},
            "train": {"budget_tokens": 20 * TOKENS}}
    config, samples = lab.config(**data), []
    for number, (start, end) in enumerate([(0, 3), (3, 6), (6, 20)]):
        samples += shown(lab.dataset(config), 8 * start, 8 * end)
        if end < 20:
            config = lab.branch(lab.save(config, end), f"branch{number}", **overlay(data, {
                "train": {"seed": number + 1}}))
    mine = [tuple(tokens) for source, tokens in samples if source == "small"]
    a_pass = lab.dataset(config).sources[0].samples_per_epoch
    assert len(mine) > 2 * a_pass
    assert len(set(mine[:a_pass])) == a_pass
    assert len(set(mine[a_pass:2 * a_pass])) == a_pass
    same_seed = [tuple(tokens) for source, tokens in shown(lab.dataset(lab.config(**data)), 0, 160)
                 if source == "small"]
    num_of_trunk = sum(source == "small" for source, _ in samples[:24])
    assert mine[:num_of_trunk] == same_seed[:num_of_trunk]
    assert mine[:a_pass] != same_seed[:a_pass]
    assert sorted(mine[:a_pass]) == sorted(same_seed[:a_pass])


def test_skipped_iterations_of_the_trunk_stay_in_the_ledger(lab):
    skipping = {"train": {"skip_iterations": [[2, 3], [7, 7]]}}
    trunk = lab.config(**skipping)
    checkpoint = lab.save(trunk, 5)
    for changes in (skipping, {"train": {"skip_iterations": [[7, 7]]}}):
        branch = lab.branch(checkpoint, **changes)
        check_run(branch, 1)
        ledgers = [Ledger(one, lab.dataset(one), run_identity(one)).at(10) for one in (branch, trunk)]
        assert ledgers[0].pop("trunk")
        assert ledgers[0] == ledgers[1]
    refused(lab.branch(checkpoint, train={"skip_iterations": [[1, 1]]}), "skip_iterations [[1, 1]] lie behind")


def refused(config, *lines):
    with pytest.raises(UserError) as refusal:
        check_run(config, 1)
    for line in lines:
        [told] = [one for one in str(refusal.value).splitlines() if line in one]
    return told


def test_what_cannot_leave_the_trunk_is_refused_in_a_line_each(lab):
    checkpoint = lab.save(lab.config(), 5)
    refused(lab.branch(lab.folder / "trunk" / "checkpoints" / "iter_0000006"),
            "start.checkpoint: ", "iter_0000006 is not a finished artifact")
    refused(lab.branch(lab.folder / "a"), "is an artifact of kind 'tokenized'; 'checkpoint' is needed")
    wider = lab.model("wider", {**LLAMA, "intermediate_size": 128})
    refused(lab.branch(checkpoint, model={"hf_folder": wider}), "has another architecture",
            "ffn_hidden_size 96, not 128")
    other = lab.model("other", LLAMA, "another tokenizer")
    refused(lab.branch(checkpoint, model={"hf_folder": other}), "has another tokenizer.json than")
    refused(lab.branch(checkpoint, train={"budget_tokens": 5 * TOKENS}),
            "budget_tokens 1,280 lies behind: the trunk has seen 1,280 tokens")
    refused(lab.branch(checkpoint, schedule={"decay_iters": 6}),
            "its WSD decay begins after iteration 4, behind the start at 5")
    refused(lab.branch(checkpoint, schedule={"style": "cosine", "decay_iters": None}), "its cosine decay begins")
    refused(lab.branch(checkpoint, train={"global_batch_size": 4}, model={"dtype": "float32"},
                       parallel={"use_distributed_optimizer": False}),
            "train.global_batch_size is 4, the trunk's 8", "model.dtype is float32, the trunk's bfloat16",
            "parallel.use_distributed_optimizer is False, the trunk's True")
    check_run(lab.branch(checkpoint, start={"optimizer": False}, parallel={"use_distributed_optimizer": False}), 1)


def test_a_trunk_in_its_decay_can_be_left_on_its_own_schedule_alone(lab):
    cosine = {"schedule": {"style": "cosine", "decay_iters": None}}
    checkpoint = lab.save(lab.config(**cosine), 5)
    check_run(lab.branch(checkpoint, **cosine, optimizer={"lr": 1e-4}), 1)
    refused(lab.branch(checkpoint, **cosine, train={"budget_tokens": 20 * TOKENS}), "its cosine decay begins")


@pytest.mark.parametrize("harm, file", [*((harm, "weights.distcp") for harm in HARMS), (delete, RUN_STATE)])
def test_a_damaged_trunk_is_refused_by_name(lab, harm, file):
    checkpoint = lab.save(lab.config(), 5)
    harm(checkpoint / file, Random(0))
    assert str(checkpoint) in refused(lab.branch(checkpoint), "start.checkpoint: ")


def test_a_trunk_that_was_made_again_with_other_bytes_is_refused(lab):
    checkpoint = lab.save(lab.config(), 5)
    branch = lab.branch(checkpoint)
    begin(branch, find_start(branch), 1)
    lab.save(branch, 6)
    assert find_start(branch).iteration == 6
    shutil.rmtree(checkpoint)
    lab.save(lab.config(train={"seed": 3}), 5)
    with pytest.raises(UserError, match=r"start\.checkpoint was '\w+', is '\w+'"):
        find_start(branch)


def test_the_dry_run_tells_where_a_branch_starts_from(lab):
    checkpoint = lab.save(lab.config(), 5)
    branch = lab.branch(checkpoint)
    assert f"starts after iteration 5 of its trunk, from {checkpoint} (content " in find_start(branch).describe()
    told = describe_run(branch, 1)
    assert "run: iterations 6 to 10 (those before are the trunk's" in told
    assert "= 1,280 tokens (budget 2,560)" in told
    assert "source a: 896 tokens after 896 of the trunk's" in told
    begin(branch, find_start(branch), 1)
    assert is_kept(checkpoint)
    assert not (branch.output / "checkpoints" / "latest").exists()
    with pytest.raises(UserError, match=r"start was None, is"):
        lab.save(lab.config(), 6)
        find_start(lab.branch(checkpoint, "trunk"))
