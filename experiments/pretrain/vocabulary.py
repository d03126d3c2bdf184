"""The students' WordPiece vocabulary: 8,192 of the teacher's tokens, chosen on train text only."""

from __future__ import annotations

import json
import string
from collections import Counter
from pathlib import Path

import tokenizers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZE = 8192
# Possible answer words: the paper's 13 classification tasks, the built-in tasks, and
# words that users are likely to choose. Each is one token whatever its frequency.
ANSWER_WORDS = """
negative positive moderate neutral conflict no yes unacceptable acceptable false true natural
shuffled scrambled random order same different next other another related unrelated good bad great
terrible real fake first second film movie review book music science sports business world law food
politics history technology right wrong correct incorrect before after
similar opposite both none more less high low better worse love hate happy sad anger angry joy fear
surprise disgust question answer statement fact opinion subjective objective hot cold old new
follows mixed normal strange start end beginning middle long short plot quality story acting ordered
broken sorted coherent sentence words word text continues topic separate together
""".split()


def choose_pieces(pieces: Counter[str], teacher: list[str]) -> list[str]:
    """Choose the students' vocabulary, in the order of the teacher's vocabulary.

    Args:
        pieces: Frequency of each of the teacher's tokens in the train text.
        teacher: the teacher's vocabulary in the order of its ids.

    Returns:
        `SIZE` tokens, the special ones first.

    Raises:
        ValueError: An answer word is not a single token of the teacher.

    Example:
        >>> letters = [*SPECIAL, *string.ascii_lowercase, *ANSWER_WORDS]
        >>> len(choose_pieces(Counter(letters), letters)) < SIZE
        True
    """
    known = set(teacher)
    if missing := [word for word in ANSWER_WORDS if word not in known]:
        raise ValueError(f"expected single tokens of the teacher, got {', '.join(missing)}")
    characters = set(string.ascii_lowercase + string.digits + string.punctuation)
    characters |= {piece for piece in pieces if len(piece.removeprefix("##")) == 1}
    singles = {form for char in characters for form in (char, f"##{char.removeprefix('##')}")}
    chosen = {*SPECIAL, *ANSWER_WORDS} | (singles & known)
    for piece, _ in pieces.most_common():
        if len(chosen) == SIZE:
            break
        chosen.add(piece)
    return [*SPECIAL, *(piece for piece in teacher if piece in chosen and piece not in SPECIAL)]


def build_tokenizer(pieces: list[str]) -> tokenizers.Tokenizer:
    """Make the lower-casing WordPiece tokenizer of this vocabulary, as in BERT."""
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    made.decoder = tokenizers.decoders.WordPiece(prefix="##", cleanup=True)
    made.add_special_tokens(list(SPECIAL))
    return made


def save_tokenizer(pieces: list[str], folder: Path, positions: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and vocab.txt as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(pieces).save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": positions,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def save_writer_tokenizer(pieces: list[str], folder: Path, family: str, sentinels: int) -> None:
    """Write the tokenizer of the built-in T5 or GPT-2: the same vocabulary with another template.

    T5 reads `text [SEP]` and has sentinels `<extra_id_0>`, ... after the vocabulary; GPT-2 reads
    `[CLS] text`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = build_tokenizer(pieces)
    frame, marked = ("$A [SEP]", "[SEP]") if family == "t5" else ("[CLS] $A", "[CLS]")
    if family == "t5":
        made.add_special_tokens([f"<extra_id_{number}>" for number in range(sentinels)])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=frame, special_tokens=[(marked, SPECIAL.index(marked))]
    )
    made.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "eos_token": "[SEP]",
        **({"bos_token": "[CLS]"} if family == "gpt2" else {}),
    }
    text = json.dumps(settings, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
