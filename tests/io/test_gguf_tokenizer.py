"""Tokenizers of GGUF files: equal to the real ones; pre-tokenizers; invalid fields."""

import heapq
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jpt.io.gguf import SPLITS, GgufFile, open_gguf, read_gguf_tokenizer
from jpt.io.tensors import TensorSource
from jpt.io.tokenizer import TextTokenizer
from tests.helpers.files import WORDS, Sample, refusal

# The 256 bytes as GPT-2 writes them: printable ones as they are, others from U+0100 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
SHIFTED = [byte for byte in range(256) if byte not in PRINTABLE]
LETTERS = {byte: chr(byte) for byte in PRINTABLE}
LETTERS |= {byte: chr(256 + at) for at, byte in enumerate(SHIFTED)}


def spell(text: str) -> str:
    """Text in the byte alphabet: a space is Ġ, a new line Ċ."""
    return "".join(LETTERS[byte] for byte in text.encode())


def build(required: tuple[str, ...] = (), **fields: Any) -> TextTokenizer:
    own = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    file = GgufFile(Path("a.gguf"), {}, TensorSource(Path(), {}, {}), own)
    return read_gguf_tokenizer(file, required)


def byte_level(pre: str = "gpt-2", words: tuple[str, ...] = (), **fields: Any) -> TextTokenizer:
    """A byte-level tokenizer whose merges build the words, letter by letter."""
    tokens = list(LETTERS.values())
    merges = []
    for word in map(spell, words):
        for end in range(2, len(word) + 1):
            tokens += [word[:end]] if word[:end] not in tokens else []
            merge = f"{word[: end - 1]} {word[end - 1]}"
            merges += [merge] if merge not in merges else []
    special = ["<|end|>", "<think>"]
    types = np.array([*[1] * len(tokens), 3, 4], np.int32)
    usual = {"model": "gpt2", "pre": pre, "tokens": [*tokens, *special], "merges": merges}
    return build(**{**usual, "token_type": types, **fields})


def tokens_of(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(token) for token in tokenizer.encode([text])[0]]


def odd_texts(count: int) -> list[str]:
    """Digits, spaces, scripts, joined emoji, marks, controls, special tokens, at random."""
    generator = random.Random(0)
    pools = [
        "abcXYZ '’s't're'LL ſ",
        "0123456789 ٣٤½²Ⅷ一二",
        "  \t\n\r\n\u00a0\u3000\u2028\u200b",
        "éèñüÅ\u212b e\u0301 ﬁ ǅ ʰ",
        "日本語テスト 한국어 हिन्दी ไทย العربية",
        "😀👩\u200d👩\u200d👧🇩🇪🏽",
        '!?.,;:-–—…$€£+=<>^~|`\\/"#%&*()[]{}@',
        "\0\1\7\ufffd\ue000\U0010ffff",
    ]
    texts = ["", " ", "  ", "\n", " a", "a ", "  a  b   c    ", "3.14159e-10", "if x:\n\t\ty\n"]
    for _ in range(count):
        chosen = generator.choices(pools, k=generator.randint(1, 30))
        texts.append("".join(generator.choice(pool) for pool in chosen))
    return texts


def test_gpt2_is_the_real_one(reference_folder: Path) -> None:
    from tokenizers import Tokenizer

    file = reference_folder / "tokenizers" / "gpt2" / "tokenizer.json"
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    end = tokens.index("<|endoftext|>")
    ours = build(
        model="gpt2",
        pre="gpt-2",
        tokens=tokens,
        merges=merges,
        token_type=np.array([3 if token == end else 1 for token in range(len(tokens))], np.int32),
        **{"bos_token_id": end, "eos_token_id": end},
    )
    real = Tokenizer.from_file(str(file))
    rows = (reference_folder / "data" / "imdb" / "validation.jsonl").read_text().splitlines()[:50]
    texts = [*odd_texts(1500), *rows]
    expected = [encoding.ids for encoding in real.encode_batch(texts, add_special_tokens=False)]
    assert ours.encode(texts) == expected
    assert [ours.decode(ids) for ids in expected] == [real.decode(ids) for ids in expected]
    assert (ours.ids.bos, ours.ids.eos, ours.ids.pad, ours.add_bos) == (end, end, None, False)


# How each kind splits a text (|), before merging.
CASES = [
    ("gpt-2", "I|'m| 123| x|²| | y|\n|\n|z"),
    ("gpt-2", "IT|'|S| wrote|5"),
    ("smollm", "I|'m| |1|2|3| x|²| | y"),
    ("smollm", "٣|٤| a|1"),
    ("llama-bpe", "I|'M| |123|45| x|²|!\n\n| y"),
    ("llama-bpe", "-a| | b|\t\n| c"),
    ("qwen2", "I|'M| |1|2|3|!\n\n| y"),
    ("qwen2", "(a|.b|)"),
    ("tekken", "Hello|WORLD| ab|C| |1|2|/\n"),
    ("tekken", "don|'t"),
    ("default", "I|'|m| |123|4| a|.|b"),
]


@pytest.mark.parametrize(("pre", "words"), CASES)
def test_pre_tokenizers(pre: str, words: str) -> None:
    found = SPLITS[pre].build().pre_tokenize_str(words.replace("|", ""))
    assert [word for word, _ in found] == list(map(spell, words.split("|")))


@pytest.mark.parametrize("pre", SPLITS)
def test_every_pre_tokenizer_is_lossless(pre: str) -> None:
    import unicodedata

    tokenizer = byte_level(pre, (" the", "ing", "12"), bos_token_id=256)
    for text in odd_texts(200):
        expected = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.decode(tokenizer.encode([text])[0]) == expected


def test_only_qwen_normalises() -> None:
    decomposed = "e\u0301"
    assert tokens_of(byte_level("qwen2"), decomposed) == list(spell("é"))
    assert tokens_of(byte_level("megrez"), decomposed) == list(spell(decomposed))


def test_a_word_without_merges() -> None:
    fields = {"tokens": [*LETTERS.values(), "Ġxyz"], "token_type": None, "bos_token_id": 0}
    assert tokens_of(byte_level("llama-bpe", **fields), " xyz") == ["Ġxyz"]
    assert tokens_of(byte_level("smaug-bpe", **fields), " xyz") == ["Ġ", "x", "y", "z"]


def test_special_tokens_are_not_split() -> None:
    tokenizer = byte_level(words=("ab",), eos_token_id=258, padding_token_id=257)
    assert tokens_of(tokenizer, "ab<|end|>ab<think> ab") == "ab <|end|> ab <think> Ġ ab".split()
    # What a control token says is no text; what a written one says is.
    assert tokenizer.decode(tokenizer.encode(["ab<|end|><think>"])[0]) == "ab<think>"
    assert (tokenizer.ids.eos, tokenizer.ids.pad, tokenizer.ids.unk) == (258, 257, None)
    assert tokenizer.vocabulary_size == 259
    # Without types, what the ids name is special; with types, a normal token may fill rows up.
    untyped = byte_level(words=("ab",), token_type=None, eos_token_id=257)
    assert tokens_of(untyped, "ab<|end|>") == ["ab", "<|end|>"]
    filled = byte_level(words=("ab",), padding_token_id=256)
    assert filled.decode(filled.encode(["ab"])[0]) == "ab"


def test_special_tokens_in_rows_are_text() -> None:
    def plain(tokenizer: TextTokenizer, text: str) -> list[str]:
        return [tokenizer.token_text(token) for token in tokenizer.encode_plain([text])[0]]

    text = "ab<|end|>ab<think> ab"
    tokenizer = byte_level(words=("ab",), eos_token_id=258, padding_token_id=257)
    assert plain(tokenizer, text) == ["ab", *"<|end|>", "ab", *"<think>", "Ġ", "ab"]
    # A token that a user defined is text, unless it ends texts, as above.
    tokenizer = byte_level(words=("ab",), eos_token_id=257)
    assert plain(tokenizer, text) == ["ab", *"<|end|>", "ab", "<think>", "Ġ", "ab"]
    assert plain(sentencepiece(WORDS), "a</s>a<s>") == ["▁a", "<unk>", "a", "<unk>"]
    assert plain(sentencepiece(WORDS), "axyb") == ["▁a", "<unk>", "b"]


def test_bos() -> None:
    assert not byte_level("gpt-2", bos_token_id=0).add_bos
    assert byte_level("gpt-2", bos_token_id=0, add_bos_token=True).add_bos
    assert byte_level("llama-bpe", bos_token_id=0).add_bos
    assert not byte_level("llama-bpe", add_bos_token=False).add_bos
    assert sentencepiece(WORDS).add_bos
    assert sentencepiece(WORDS, add_bos_token=False).ids[:] == (None, None, None, None, 0, 1, 2)


def sentencepiece(words: list[str], **fields: Any) -> TextTokenizer:
    """A SentencePiece tokenizer; the first words score best."""
    scores = -np.arange(len(words), dtype=np.float32)
    usual = {"model": "llama", "pre": "default", "tokens": words, "scores": scores}
    usual["token_type"] = np.array([2, 3, 3, *[1] * (len(words) - 3)], np.int32)
    return build(**{**usual, **fields})


def learn_tokens(text: str, count: int) -> list[str]:
    """Pieces as SentencePiece learns them: the most frequent neighbours become one."""
    words = Counter("▁" + word for word in text.split())
    split = {word: list(word) for word in words}
    learned: list[str] = []
    while len(learned) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, tokens in split.items():
            for pair in zip(tokens, tokens[1:], strict=False):
                pairs[pair] += words[word]
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(left + right)
        for tokens in split.values():
            at = 0
            while at + 1 < len(tokens):
                if tokens[at] == left and tokens[at + 1] == right:
                    tokens[at : at + 2] = [left + right]
                at += 1
    return list(dict.fromkeys(learned))


def merge_by_score(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's own algorithm: the best pair of neighbours first, of equal ones the left."""
    symbols: list[str | None] = list(text)

    def neighbour(at: int, step: int) -> int | None:
        at += step
        while 0 <= at < len(symbols) and symbols[at] is None:
            at += step
        return at if 0 <= at < len(symbols) else None

    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int | None, right: int | None) -> None:
        if left is not None and right is not None:
            whole = f"{symbols[left]}{symbols[right]}"
            if whole in scores:
                heapq.heappush(queue, (-scores[whole], left, right, whole))

    for at in range(len(symbols) - 1):
        offer(at, at + 1)
    while queue:
        _, left, right, whole = heapq.heappop(queue)
        if symbols[left] is None or symbols[right] is None or neighbour(left, 1) != right:
            continue
        if f"{symbols[left]}{symbols[right]}" != whole:
            continue
        symbols[left], symbols[right] = whole, None
        offer(neighbour(left, -1), left)
        offer(left, neighbour(left, 1))
    return [symbol for symbol in symbols if symbol is not None]


def test_sentencepiece_merges_as_the_original() -> None:
    prose = (Path(__file__).parents[2] / "LICENSE").read_text()
    learned = learn_tokens(prose, 300)
    # Letters that no token has are left to bytes.
    letters = sorted(set("".join(learned)) - {"▁"})
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    spaces = ["▁▁", "▁▁▁▁", "▁▁▁", "▁▁▁▁▁▁▁▁"]
    words = ["<unk>", "<s>", "</s>", *byte_tokens, *learned, *spaces, "▁", *letters]
    scores = [0.0] * 259 + [-float(at) for at in range(len(learned))]
    scores += [-1e9] * 4 + [-float(at) for at in range(300, 300 + 1 + len(letters))]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) - 259)
    tokenizer = sentencepiece(words, scores=np.array(scores, "f4"), token_type=np.array(types))
    known = {word: scores[at] for at, word in enumerate(words) if types[at] == 1}
    lines = prose.splitlines()
    for text in [*lines, *odd_texts(600), *(" " * length for length in range(40))]:
        expected = []
        for token in merge_by_score("▁" + text.replace(" ", "▁"), known) if text else []:
            expected += [token] if token in known else [f"<0x{b:02X}>" for b in token.encode()]
        ids = tokenizer.encode([text])[0]
        assert [words[token] for token in ids] == expected, text
        assert tokenizer.decode(ids) == text


def test_sentencepiece_prefix_and_unknown_letters() -> None:
    prefixed = sentencepiece(WORDS)
    assert tokens_of(prefixed, "a b") == ["▁a", "▁b"]
    assert tokens_of(prefixed, " a") == ["▁", "▁a"]  # one more space even before a space
    assert tokens_of(prefixed, "a</s>a") == ["▁a", "</s>", "▁a"]
    assert tokens_of(prefixed, "axyb") == ["▁a", "<unk>", "b"]  # no tokens for bytes here
    plain = sentencepiece(WORDS, add_space_prefix=False)
    assert tokens_of(plain, "a b") == ["a", "▁b"]
    assert prefixed.decode(prefixed.encode(["a b"])[0]) == "a b"
    assert plain.decode(plain.encode([" a b"])[0]) == " a b"
    assert prefixed.encode([""]) == [[]]


def test_the_tokenizer_of_a_file(tmp_path: Path) -> None:
    tokenizer = read_gguf_tokenizer(open_gguf(Sample().write(tmp_path / "a.gguf")))
    assert tokens_of(tokenizer, "b a") == ["▁b", "▁a"]
    assert tokenizer.ids == (None, None, None, None, 0, 1, 2)


GPT2 = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "merges": ["a b"]}
LLAMA = {"model": "llama", "tokens": ["a", "b", "ab"], "scores": np.zeros(3, np.float32)}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "ggml.model is 'None'; expected one of gpt2, llama"),
    ({**GPT2, "model": "t5"}, "ggml.model is 't5'; expected one of gpt2, llama"),
    ({**GPT2, "pre": "jina-v2-de"}, "ggml.pre is 'jina-v2-de'; expected one of default, .*qwen2"),
    ({**GPT2, "pre": None}, "ggml.pre is missing; expected one of default"),
    ({**GPT2, "tokens": None}, "ggml.tokens is missing"),
    ({**GPT2, "tokens": []}, "ggml.tokens is 0 tokens"),
    ({**GPT2, "tokens": np.arange(3)}, "ggml.tokens is not a list of texts"),
    ({**GPT2, "tokens": ["a", "b", "a"]}, "ggml.tokens is 3 tokens, 2 of them distinct"),
    ({**GPT2, "tokens": ["a" * 2000]}, "ggml.tokens is a list with a token of 2000 char"),
    ({**GPT2, "merges": None}, "ggml.merges is missing"),
    ({**GPT2, "merges": ["ab"]}, "ggml.merges is a list with 'ab', which is not a pair"),
    ({**GPT2, "merges": ["a c"]}, "ggml.merges is a list with 'a c', which is not a pair"),
    ({**GPT2, "merges": ["b a"]}, "ggml.merges is a list with 'b a', which does not form a token"),
    ({**GPT2, "token_type": np.ones(2)}, "token_type is not a list of 3 numbers, one per token"),
    ({**GPT2, "eos_token_id": 3}, "ggml.eos_token_id is 3, but there are 3 tokens"),
    ({**GPT2, "eos_token_id": "a"}, "ggml.eos_token_id is a, but there are 3 tokens"),
    ({**GPT2, "add_bos_token": True}, "ggml.bos_token_id is missing, but every text"),
    ({**GPT2, "required": ("eos",)}, "ggml.eos_token_id is missing, but this model family"),
    ({**GPT2, "required": ("pad",)}, "ggml.padding_token_id is missing, but this model family"),
    ({**GPT2, "add_bos_token": 1}, "ggml.add_bos_token is '1'; expected true or false"),
    ({**LLAMA, "scores": None}, "ggml.scores is missing or not finite"),
    ({**LLAMA, "scores": np.zeros(2)}, "ggml.scores is not a list of 3 numbers"),
    ({**LLAMA, "scores": np.full(3, np.inf)}, "ggml.scores is missing or not finite"),
    ({**LLAMA, "remove_extra_whitespaces": True}, "extra_whitespaces is true, which is not supp"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_invalid_fields(fields: dict[str, Any], message: str) -> None:
    with refusal(message) as caught:
        build(**fields)
    assert str(caught.value).startswith("a.gguf: ") and "\n" not in str(caught.value)


def test_empty_tokens_have_a_name() -> None:
    tokenizer = build(**{**GPT2, "tokens": ["a", "b", "ab", "", ""]})
    assert [tokenizer.token_text(token) for token in (3, 4)] == ["[EMPTY_3]", "[EMPTY_4]"]
