"""What every engine must do, as a program: the vLLM engine runs in an environment that has no pytest.

    python -m tests.unit.engine_contract vllm MODEL_FOLDER            python -m tests.unit.engine_contract openai URL

Prints the answers as JSON.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from megatron_ext.data.rewriting.engines.interface import Request, Sampling
from megatron_ext.data.rewriting.engines.open import open_engine
from megatron_ext.data.rewriting.engines.settings import OpenaiSettings, VllmSettings

PROMPTS = ["Reescreva: o gato subiu no telhado.", "Reescreva: a água ferve.", "Traduza.", "Reescreva: x" * 9,
           "Uma pergunta, por favor: por quê?"]
REQUESTS = [Request(str(seed), prompt, seed, 12 + 9 * seed) for seed, prompt in enumerate(PROMPTS)]
OTHER_SEEDS = [Request(f"seed {seed}", "Reescreva.", seed, 12) for seed in range(5)]
SCHEMA = {"type": "string", "enum": ["fiel", "infiel"]}


def answers(engine, requests, at_a_time=99):
    """Request key -> completion; the engine gets so many requests at a time."""
    rest = list(requests)

    def take():
        batch = rest[:at_a_time]
        del rest[:at_a_time]
        return batch

    return {request.key: asdict(completion) for request, completion in engine.answer(take)}


def scenarios(open_with):
    greedy, sampled = open_with(Sampling(temperature=0)), None
    result = {"greedy": answers(greedy, REQUESTS)}
    # A process holds one vLLM engine: how it draws is set anew.
    sampled = greedy
    sampled._sampling = Sampling(temperature=1.0, top_p=1.0)
    result["sampled"] = answers(sampled, REQUESTS)
    result["sampled again, in pairs"] = answers(sampled, REQUESTS[::-1], at_a_time=2)
    result["other seeds"] = answers(sampled, OTHER_SEEDS)
    if hasattr(sampled, "_schema"):
        sampled._schema = SCHEMA
        result["held to a schema"] = answers(sampled, OTHER_SEEDS)
    return result


def open_with(name, place):
    model = None if name == "openai" else Path(place)
    openai = OpenaiSettings(base_url=place) if name == "openai" else OpenaiSettings()
    return lambda sampling: open_engine(name, model, sampling, VllmSettings(arguments={"seed": 3}), openai)


if __name__ == "__main__":
    print(json.dumps(scenarios(open_with(*sys.argv[1:]))))
