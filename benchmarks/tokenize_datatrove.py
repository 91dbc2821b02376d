"""One turn of benchmarks.tokenize by datatrove; runs in .venv-peers (benchmarks/requirements.txt), not in ours.

    .venv-peers/bin/python -m benchmarks.tokenize_datatrove TOKENIZER_JSON EOS_TOKEN FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.measuring import measure


def main() -> None:
    """Tokenize FOLDER/documents.jsonl in this process; print the measurement as JSON."""
    tokenizer, eos_token, folder = sys.argv[1:]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers  # noqa: F401 (imports do not count)
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    pipeline = [JsonlReader(folder, glob_pattern="documents.jsonl"),
                MegatronDocumentTokenizer(f"{folder}/out", tokenizer_name_or_path=tokenizer, eos_token=eos_token)]

    def run() -> Path:
        LocalPipelineExecutor(pipeline, tasks=1, workers=1, logging_dir=f"{folder}/logs").run()
        return next(Path(folder, "out").glob("*.bin"))

    print(json.dumps(measure(run)))


if __name__ == "__main__":
    main()
