"""Tokenizers: equal to transformers on real text, with errors that name what is missing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.tasks.catalog import CATALOG
from jpt.tasks.verbalizers import label_words
from tests.helpers.files import refusal

REAL = ("roberta-base", "bert-base-uncased")


def read_texts(reference_folder: Path, task: str, field: str, n_rows: int) -> list[str]:
    file = reference_folder / "data" / task / "validation.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()[:n_rows]
    return [json.loads(line)[field] for line in lines]


@pytest.mark.parametrize("name", REAL)
def test_real_text_gives_the_ids_of_transformers(name: str, reference_folder: Path) -> None:
    from transformers import AutoTokenizer

    folder = reference_folder / "tokenizers" / name
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = read_texts(reference_folder, "imdb", "text", 50)
    texts += read_texts(reference_folder, "tweeteval_sentiment", "text", 300)
    texts += read_texts(reference_folder, "mnli", "premise", 300)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.encode(texts) == expected
    assert [ours.word_tokens(text) for text in texts[-5:]] == expected[-5:]
    for special in ("cls", "sep", "mask", "pad"):
        assert getattr(ours.ids, special) == getattr(theirs, f"{special}_token_id")
    assert ours.unknown == theirs.unk_token_id
    assert ours.vocabulary_size == max(theirs.get_vocab().values()) + 1


def test_a_decoders_label_word_has_the_space_before_it(reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "gpt2", ())
    ids = label_words(CATALOG["sst2"], tokenizer, "gpt2", "decoder").ids
    assert [tokenizer.token_text(token) for token in ids] == ["Ġnegative", "Ġpositive"]


def test_ids_become_text_again_without_special_tokens(reference_folder: Path) -> None:
    for name in ("gpt2", "t5-base"):
        tokenizer = load_tokenizer(reference_folder / "tokenizers" / name, ())
        text = "It's 7.50, isn't it?"
        assert tokenizer.decode([*tokenizer.word_tokens(text), tokenizer.ids.eos]) == text


def test_a_word_starts_without_a_space(reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "roberta-base")
    assert tokenizer.word_tokens("positive") == [22173]
    tokens = tokenizer.word_tokens("conflict")
    assert [tokenizer.token_text(token) for token in tokens] == ["conf", "lict"]
    assert tokenizer.vocabulary_size == 50265  # with ids that have no token
    assert tokenizer.token_text(50261) == "<50261>"


def test_a_decoder_vocabulary_has_no_mask(reference_folder: Path) -> None:
    folder = reference_folder / "tokenizers" / "gpt2"
    with refusal("has no cls token"):
        load_tokenizer(folder)
    assert load_tokenizer(folder, required=()).ids.mask is None


def test_nothing_is_added_and_special_tokens_are_found(toy_tokenizer: TextTokenizer) -> None:
    long = "the film is good " * 20
    assert toy_tokenizer.encode(["the film", long, ""]) == [[6, 7], [6, 7, 8, 10] * 20, []]
    assert toy_tokenizer.ids == (2, 3, 4, 0, 1, None, None)
    assert not toy_tokenizer.add_bos


def test_special_tokens_may_have_other_names(tmp_path, write_tokenizer: Callable[..., Path]):
    config = {"mask_token": {"content": "dull"}, "pad_token": "good"}
    ids = load_tokenizer(write_tokenizer(tmp_path, config)).ids
    assert (ids.mask, ids.pad, ids.cls) == (12, 10, 2)
    folder = write_tokenizer(tmp_path, {"mask_token": "<blank>"})
    with refusal('has no mask token.*"mask_token"'):
        load_tokenizer(folder)


def test_older_files_go_through_transformers(tmp_path: Path, toy_tokenizer: TextTokenizer) -> None:
    tokens = [toy_tokenizer.token_text(token) for token in range(toy_tokenizer.vocabulary_size)]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_tokenizer(tmp_path)
    texts = ["The film is NOT good", "brights"]
    assert tokenizer.encode(texts) == toy_tokenizer.encode(texts)
    assert tokenizer.ids == toy_tokenizer.ids


def test_a_folder_of_the_usual_kind_needs_no_transformers(tmp_path, write_tokenizer) -> None:
    folder = write_tokenizer(tmp_path)
    code = "import sys; from jpt.io.tokenizer import load_tokenizer; "
    code += f"load_tokenizer({str(folder)!r}); print('transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_folders_without_a_tokenizer(tmp_path: Path) -> None:
    with refusal("does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with refusal("has no tokenizer.json and transformers finds no tokenizer"):
        load_tokenizer(tmp_path)
    for content in ("{", '{"model": 1}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with refusal("cannot read .*tokenizer.json"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", " is not JSON"),
        ("[1]", ": expected a JSON object, got list"),
        ('{"mask_token": "[MASK]", "mask_token": "[SEP]"}', r": key 'mask_token' is given twice, "),
    ],
)
def test_a_broken_config(tmp_path, write_tokenizer: Callable[..., Path], content, message) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with refusal("tokenizer_config.json" + message):
        load_tokenizer(tmp_path)


SPECIAL_TEXTS = {
    "bert-base-uncased": "a fine [MASK] film [SEP] and [CLS] more [PAD]",
    "roberta-base": "a fine <mask> film </s> and <s> more<pad>",
    "gpt2": "a fine <|endoftext|> film<|endoftext|>",
}


@pytest.mark.parametrize(("name", "text"), SPECIAL_TEXTS.items())
def test_special_tokens_in_rows_are_those_of_transformers_split(
    name: str, text: str, reference_folder: Path
) -> None:
    from transformers import AutoTokenizer

    folder = reference_folder / "tokenizers" / name
    ours, theirs = load_tokenizer(folder, ()), AutoTokenizer.from_pretrained(folder)
    texts = [text, "no special token in it"]
    split = theirs(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ours.encode_plain(texts) == split
    assert ours.encode(texts) == theirs(texts, add_special_tokens=False)["input_ids"] != split
    assert ours.count_special(texts) == [2 if name == "gpt2" else 4, 0]


def test_special_tokens_that_the_model_itself_has(reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "t5-base", ("eos", "pad"))
    special = {tokenizer.ids.eos, tokenizer.ids.pad, tokenizer.find("<extra_id_0>")}
    # Full-width brackets become the usual ones before the model reads them.
    texts = ["a </s> film", "<extra_id_0> b <pad>", "\uff1c/s\uff1e x", "</s>", "<pad></s>"]
    for text, ids in zip(texts, tokenizer.encode_plain(texts), strict=True):
        assert special.isdisjoint(ids) and len(ids) >= 4, text
    assert tokenizer.decode(tokenizer.encode_plain(["a </s> film"])[0]) == "a /s> film"
    assert tokenizer.encode(texts[:1]) == [[3, 9, tokenizer.ids.eos, 814]]
    plain = ["It's 7.50, isn't it? <b>No</b>!", "e\u0301 \u4e2d"]
    assert tokenizer.encode_plain(plain) == tokenizer.encode(plain)


def test_special_tokens_that_the_list_of_words_has(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "[MASK]", "[PAD]", "<end>", "a", "film", ".", "[", "MASK]", "<", "end>"]
    backend = Tokenizer(models.WordLevel(dict(zip(words, range(11), strict=True)), "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[PAD]"])
    backend.add_tokens([AddedToken("<end>", special=False)])
    backend.save(str(tmp_path / "tokenizer.json"))
    named = {"mask_token": "[MASK]", "eos_token": "<end>", "sep_token": ".", "cls_token": "."}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.ids == (6, 6, 1, 2, 0, None, 3)
    # Whole words of the vocabulary, and an added token that is not marked as special.
    assert tokenizer.encode(["a [MASK] film <end> . [PAD]"]) == [[4, 1, 5, 3, 6, 2]]
    # The period ends texts here, but is a period all the same; "[PAD]" is in no word.
    assert tokenizer.encode_plain(["a [MASK] film <end> . [PAD]"])[0][:7] == [4, 7, 8, 5, 9, 10, 6]
    assert {1, 2, 3}.isdisjoint(tokenizer.encode_plain(["[PAD] [MASK]<end>"])[0])


def test_templates_keep_their_own_special_tokens(
    reference_folder: Path, toy_tokenizer: TextTokenizer
) -> None:
    for name, mark in (("roberta-base", "<mask>"), ("t5-base", "<extra_id_0>")):
        tokenizer = load_tokenizer(reference_folder / "tokenizers" / name, ())
        token, text = tokenizer.find(mark), f"a {mark} film: {mark} {mark}"
        for own, count in (([False, True, True], 2), ([True], 1), ([], 0), ([True] * 3, 3)):
            ids = tokenizer.encode_plain([text, "the film"], [own, []])
            assert ids[0].count(token) == count and ids[1] == tokenizer.encode(["the film"])[0]
        assert tokenizer.encode_plain([text], [[True] * 3]) == tokenizer.encode([text])
    mask, film = toy_tokenizer.ids.mask, toy_tokenizer.encode(["film"])[0]
    assert toy_tokenizer.encode_after("is [MASK]", ["film [MASK]"]) == [[*film, mask]]
    (ids,) = toy_tokenizer.encode_after("is [MASK]", ["film [MASK]"], plain=True)
    assert ids == toy_tokenizer.encode_plain(["film [MASK]"])[0] and mask not in ids
