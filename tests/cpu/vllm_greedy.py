"""Write the greedy tokens of vLLM for a model folder and a prompt of token ids. Runs in the environment of vLLM.

    .venv-vllm/bin/python tests/cpu/vllm_greedy.py FOLDER '[1, 2, 3]' 16 tokens.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams

    folder, prompt, num_tokens, output = sys.argv[1:]
    model = LLM(folder, dtype="float32", skip_tokenizer_init=True, enforce_eager=True, max_model_len=128,
                max_num_seqs=1)
    [result] = model.generate([{"prompt_token_ids": json.loads(prompt)}],
                              SamplingParams(temperature=0, max_tokens=int(num_tokens), ignore_eos=True,
                                             detokenize=False), use_tqdm=False)
    Path(output).write_text(json.dumps(list(result.outputs[0].token_ids)))


if __name__ == "__main__":
    main()
