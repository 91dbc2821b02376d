"""SentencePiece models of many kinds for tests of the native encoder, and texts that are hard on encoders."""

import io
import random

from tests.unit.tokenizer_folders import TEXTS

CORPUS = [*TEXTS, "abc abcabc  bcd ab   cab", "x = [1, 2];\n\n\n", "você você vocês nós mesmos",
          "desenvolvimento sustentável", "responsabilidade internacionalização inconstitucionalissimamente"] * 4
SYMBOLS = ["abc", "ab", "bcd", "▁▁▁", "\n\n", "<ação>", "é", "▁você", "c▁a"]


def train(**changes):
    """A model of the Llama-2 kind with some settings changed, serialised."""
    import sentencepiece

    settings = {"vocab_size": 500, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False, "minloglevel": 2, "hard_vocab_limit": False, "num_threads": 1}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, **settings | changes)
    return model.getvalue()


def edited(model, edit):
    """A model after `edit(ModelProto)`."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    proto = protobuf.ModelProto.FromString(model)
    edit(proto)
    return proto.SerializeToString()


def with_large_ids(model):
    """The model with its pieces moved behind 70,000 special ones, and every third score equal to the one before."""
    def edit(proto):
        pieces = [type(piece).FromString(piece.SerializeToString()) for piece in proto.pieces]
        del proto.pieces[:]
        first_normal = next(i for i, piece in enumerate(pieces) if piece.type == piece.NORMAL)
        proto.pieces.extend(pieces[:first_normal])
        for number in range(70_000):
            proto.pieces.add(piece=f"<extra_{number}>", score=0, type=pieces[0].CONTROL)
        for i, piece in enumerate(pieces[first_normal:], first_normal):
            if i % 3 == 0:
                piece.score = pieces[i - 1].score
            proto.pieces.append(piece)

    return edited(model, edit)


def fuzzed_texts(seed, count):
    """`count` texts of pieces, runs, odd spaces and odd characters in random order."""
    generator = random.Random(seed)
    words = sorted({word for text in CORPUS for word in text.split()})
    alphabets = ["abc", "abc ▁\n", "ab\0", "aeiouãéç st", " \t\r\n\x01\x7f\x85\u00a0\u2028▁", "你好世😀👩\u200d\ufe0f",
                 "<>/s0x1A|_ "]
    planes = [range(0x80), range(0x80, 0x800), range(0x800, 0xD800), range(0xE000, 0x110000)]

    def fragment():
        kind = generator.randrange(6)
        if kind <= 1:
            return generator.choice(["", " ", "  ", "▁"]) + generator.choice(words)
        if kind == 2:
            return "".join(generator.choices(generator.choice(alphabets), k=generator.randrange(12)))
        if kind == 3:
            return generator.choice([*SYMBOLS, "</s>", "<s>", "<unk>", "<0x0A>", " ⁇ "])
        if kind == 4:
            return generator.choice(["a", "ab", " ", "é", "你", "\n", "▁"]) * int(generator.expovariate(0.1))
        return "".join(chr(generator.choice(generator.choice(planes))) for _ in range(generator.randrange(4)))

    return ["".join(fragment() for _ in range(generator.randrange(14))) for _ in range(count)]
