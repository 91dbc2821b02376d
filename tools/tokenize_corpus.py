"""Stage 3: tokenize documents into Megatron indexed datasets (train.bin/.idx, valid.bin/.idx).

    python -m tools.tokenize_corpus --output work/tokens documents=work/selection tokenizer=models/tinyllama
"""

from __future__ import annotations

import sys

from megatron_ext.data.selection.preview import describe_tokenization
from megatron_ext.data.tokenization import TokenizeSettings, tokenize_corpus
from megatron_ext.errors import exit_on_user_error
from megatron_ext.parts import Part
from megatron_ext.settings import parse_stage_arguments


@exit_on_user_error
def main() -> None:
    """Parse the command line, tokenize, say what came out."""
    settings, output, share = parse_stage_arguments(TokenizeSettings, __doc__ or "", preview=describe_tokenization,
                                                    parts=True)
    counts = tokenize_corpus(settings, output, share).counts
    if isinstance(share, Part):
        print(f"{share.folder(output)}: part {share.index} of {share.count}, {counts['chunks']:,} chunks")
        return
    summary = ", ".join(f"{split} {counts[split]['documents']:,} documents, {counts[split]['tokens']:,} tokens"
                        for split in ("train", "valid"))
    special = ", ".join(f"{token} {number:,}" for token, number in counts["special_tokens_in_texts"].items())
    print(f"{output}: {summary}; encoder {counts['encoder']}, end of document {counts['eod_token_id']}"
          f"{'; special tokens that texts hold: ' + special if special else ''}")


if __name__ == "__main__":
    sys.exit(main())
