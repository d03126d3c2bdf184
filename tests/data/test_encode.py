"""Encoded rows and answers: framing, truncation, and the cache of encoded splits."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jpt.data import encode
from jpt.data.batches import evaluation_batches, make_batch
from jpt.data.encode import EncodedSplit, cut_segments, encode_cached, encode_split, encode_texts
from jpt.errors import InputError
from jpt.io.tokenizer import TextTokenizer, load_tokenizer
from jpt.tasks.catalog import CATALOG
from jpt.tasks.task import Task
from tests.helpers.files import GENERATIVE, refusal

SST2, MNLI = CATALOG["sst2"], CATALOG["mnli"]
CLS, SEP = 2, 3


def row_of(split: EncodedSplit, i: int) -> list[int]:
    return split.tokens[split.offsets[i] : split.offsets[i + 1]].tolist()


def sst2_rows(*texts: str) -> list[dict[str, str]]:
    return [{"text": text, "label": "positive"} for text in texts]


def test_a_text_is_framed_by_special_tokens(toy_tokenizer: TextTokenizer) -> None:
    split = encode_split(sst2_rows("the film", "good"), SST2, toy_tokenizer, 8)
    assert row_of(split, 0) == [CLS, 6, 7, SEP]
    assert row_of(split, 1) == [CLS, 10, SEP]
    assert split.lengths.tolist() == [4, 3]
    assert (split.n_rows, split.cut_rows) == (2, 0)
    assert (split.tokens.dtype, split.offsets.dtype) == (np.int32, np.int64)


def test_a_text_without_tokens_is_refused(toy_tokenizer: TextTokenizer) -> None:
    for text in ("\u200b", "\u0301\u0301", "\ufffd"):
        with refusal("sst2, row 2: .*finds none in '"):
            encode_split(sst2_rows("the film", text), SST2, toy_tokenizer, 5)
    pair = {"premise": "the film", "hypothesis": "\ufffd", "label": "neutral"}
    with refusal("mnli, row 1: .*finds none in 'the film' or '"):
        encode_split([pair], MNLI, toy_tokenizer, 16)


def test_special_tokens_of_rows_are_text_and_those_of_the_template_stay(
    toy_tokenizer: TextTokenizer,
) -> None:
    mask, (text,) = toy_tokenizer.ids.mask, sst2_rows("the [MASK] film [SEP] is [PAD] good [CLS]")
    (plain,) = toy_tokenizer.encode_plain([text["text"]])
    assert row_of(encode_split([text], SST2, toy_tokenizer, 60), 0) == [CLS, *plain, SEP]
    task = replace(SST2, templates={"encoder": ("[MASK] it is {text} , not [MASK] .",)})
    own = toy_tokenizer.encode(["it is", ", not", "."])
    read = row_of(encode_split([text], task, toy_tokenizer, 60), 0)
    assert read == [CLS, mask, *own[0], *plain, *own[1], mask, *own[2], SEP]
    # A long text is tokenised in part; its template's mask is counted as before.
    (long,) = sst2_rows("the film [MASK] " * 60)
    read = row_of(encode_split([long], task, toy_tokenizer, 12), 0)
    assert read.count(mask) == 1 and read[1] == mask and len(read) == 12
    templates = {"encoder_decoder": ("{question}",), "decoder": ("{question}", "is [SEP]")}
    row = {"question": "the [SEP] film", "answers": ("good [SEP] film",)}
    split = encode_split(
        [row], replace(GENERATIVE, templates=templates), toy_tokenizer, 40, "decoder"
    )
    question, answer = toy_tokenizer.encode_plain(["the [SEP] film", "good [SEP] film"])
    assert row_of(split, 0) == [*question, *toy_tokenizer.encode(["is"])[0], SEP]
    assert split.answers.reference_tokens == ((tuple(answer[:5]),),)


def test_a_pair_has_one_separator_the_hypothesis_first_and_its_class(
    toy_tokenizer: TextTokenizer,
) -> None:
    row = {"premise": "the film", "hypothesis": "good", "label": "neutral"}
    rows = [row, *({**row, "label": label} for label in ("entailment", "contradiction"))]
    split = encode_split(rows, MNLI, toy_tokenizer, 16)
    assert row_of(split, 0) == [CLS, 10, SEP, 6, 7, SEP]
    assert (split.labels.tolist(), split.labels.dtype) == ([1, 2, 0], np.int32)


def test_max_tokens_includes_special_tokens(toy_tokenizer: TextTokenizer) -> None:
    rows = sst2_rows("one two three", "one two three four")
    split = encode_split(rows, SST2, toy_tokenizer, 5)
    assert row_of(split, 0) == row_of(split, 1) == [CLS, 21, 22, 23, SEP]
    assert split.cut_rows == 1


@pytest.mark.parametrize("n_first", range(1, 12))
@pytest.mark.parametrize("n_second", range(1, 12))
@pytest.mark.parametrize("room", [2, 5, 8])
def test_a_pair_is_truncated_token_by_token_from_the_longer_text(n_first, n_second, room) -> None:
    pair = [list(range(n_first)), list(range(100, 100 + n_second))]
    first, second = cut_segments(pair, room)
    assert first == pair[0][: len(first)] and second == pair[1][: len(second)]
    assert len(first) + len(second) == min(n_first + n_second, room)
    lengths = [n_first, n_second]
    # The longer text loses its last piece until both fit; on a tie the one that was shorter does.
    while sum(lengths) > room:
        tie = 1 if n_first >= n_second else 0
        lengths[tie if lengths[0] == lengths[1] else int(np.argmax(lengths))] -= 1
    assert [len(first), len(second)] == lengths
    shorter = min(n_first, n_second)
    assert min(lengths) == shorter or shorter > room // 2


@pytest.mark.parametrize(("task", "least"), [(SST2, 3), (MNLI, 5)], ids=["text", "pair"])
def test_max_tokens_must_leave_room(task, least: int, toy_tokenizer: TextTokenizer) -> None:
    row = {"text": "a", "premise": "a", "hypothesis": "a", "label": task.labels[0]}
    encode_split([row], task, toy_tokenizer, least)
    with pytest.raises(InputError, match=f"max_tokens is {least - 1}, .* give {least} or more"):
        encode_split([row], task, toy_tokenizer, least - 1)
    with pytest.raises(InputError, match=f"task {task.name} has no rows"):
        encode_split([], task, toy_tokenizer, least)


HARD = [
    *("the film is " * 40, "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz " * 40),
    *("q" * 3000 + " the film", "one two   three\t\tfour     " * 60),
    *("    " * 200 + "one two three four", "one" + " " * 2000 + "two three four"),
    "\u200b \u200b \u200b " * 300 + "one two three four five",
    *("no space " + "\u4e2d" * 900, "e\u0301 \u0301 n\u0303 " * 300),
]


@pytest.mark.parametrize("room", [1, 3, 10, 40])
def test_tokenising_only_the_start_of_a_long_text_changes_nothing(room, toy_tokenizer) -> None:
    plain = toy_tokenizer.encode(HARD)
    for whole, ids in zip(plain, encode_texts(HARD, toy_tokenizer, room), strict=True):
        assert ids == whole[: len(ids)]
        assert len(ids) == len(whole) or len(ids) > room


@pytest.mark.parametrize("name", ["roberta-base", "bert-base-uncased"])
def test_the_same_on_real_reviews(name: str, reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / name)
    file = reference_folder / "data" / "imdb" / "validation.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()[:150]]
    plain = tokenizer.encode(texts)
    for room in (5, 62, 126):
        for whole, ids in zip(plain, encode_texts(texts, tokenizer, room), strict=True):
            assert ids[: room + 1] == whole[: room + 1]


def test_the_order_of_rows_changes_no_row(toy_tokenizer: TextTokenizer) -> None:
    texts = ["the film is good", "bad", "it is not a good film and i saw it", "dull"]
    split = encode_split(sst2_rows(*texts), SST2, toy_tokenizer, 8)
    other = encode_split(sst2_rows(*reversed(texts)), SST2, toy_tokenizer, 8)
    assert [row_of(split, i) for i in range(4)] == [row_of(other, 3 - i) for i in range(4)]
    assert split.cut_rows == other.cut_rows == 1


def test_t5_reads_the_segments_and_an_end_token(reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "t5-base", ("eos", "pad"))
    row = {"sentence1": "Is it so?", "sentence2": "It is.", "label": "paraphrase"}
    split = encode_split([row], CATALOG["qqp"], tokenizer, 32, "encoder_decoder")
    texts = tokenizer.encode(["Is it so?", "<extra_id_0> It is."])
    assert row_of(split, 0) == [*texts[0], *texts[1], tokenizer.ids.eos]
    short = encode_split([row], CATALOG["qqp"], tokenizer, 6, "encoder_decoder")
    assert row_of(short, 0) == [*texts[0][:3], *texts[1][:2], tokenizer.ids.eos]


def test_the_cue_of_a_decoder_is_never_truncated(reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "gpt2", ())
    cue = tokenizer.word_tokens("\nAnswer:")
    whole = tokenizer.word_tokens("a long and winding text")
    split = encode_split(sst2_rows("a long and winding text"), SST2, tokenizer, 6, "decoder")
    assert row_of(split, 0) == [*whole[:3], *cue]
    assert split.cut_rows == 1
    with pytest.raises(InputError, match="has 3 special and at least 1 text tokens; give 4"):
        encode_split(sst2_rows("a"), SST2, tokenizer, 3, "decoder")


def test_a_decoder_reads_its_start_token_first(reference_folder: Path) -> None:
    plain = load_tokenizer(reference_folder / "tokenizers" / "gpt2", ())
    tokenizer = TextTokenizer(plain._backend, plain.ids, add_bos=True)
    split = encode_split(sst2_rows("good"), SST2, tokenizer, 16, "decoder")
    assert row_of(split, 0)[0] == plain.ids.bos
    assert row_of(split, 0)[1:] == plain.word_tokens("good\nAnswer:")


ECHO = Task(
    "echo", "copy", ("text",), (), {"encoder_decoder": ("{text}",)}, {}, "bleu",
    answer_field="said", answer_tokens=6,
)  # fmt: skip
ROWS = [
    {"text": "Who was it?", "answers": ("Denver", "Denver Broncos")},
    {"text": "What?", "answers": ("a rather long answer that goes on and on for ever",)},
    {"text": "Which?", "answers": ("  spaces kept  ", "two")},
]


@pytest.fixture(params=["t5-base", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, reference_folder: Path) -> TextTokenizer:
    return load_tokenizer(reference_folder / "tokenizers" / request.param, ("eos",))


def encoded(tokenizer: TextTokenizer, limit: int = 6) -> EncodedSplit:
    is_t5 = tokenizer.find("<extra_id_0>") is not None
    layout = "encoder_decoder" if is_t5 else "decoder"
    return encode_split(ROWS, ECHO, tokenizer, 32, layout, limit)


def answer_of(split: EncodedSplit, row: int) -> list[int]:
    answers = split.answers
    return answers.tokens[answers.offsets[row] : answers.offsets[row + 1]].tolist()


def test_only_complete_answers_have_an_end_token(tokenizer: TextTokenizer) -> None:
    split, eos = encoded(tokenizer), tokenizer.ids.eos
    assert answer_of(split, 0)[-1] == eos
    assert tokenizer.decode(answer_of(split, 0)).strip() == "Denver"
    assert len(answer_of(split, 1)) == 6 and eos not in answer_of(split, 1)
    assert tokenizer.decode(answer_of(split, 1)).strip().startswith("a rather long answer")
    assert split.answers.cut_rows == 1 and split.answers.width == 7
    assert encoded(tokenizer, 40).answers.cut_rows == 0
    assert not split.labels.any() and split.cut_rows == 0


def test_references_as_text_and_tokens(tokenizer: TextTokenizer) -> None:
    answers = encoded(tokenizer).answers
    assert answers.references == tuple(row["answers"] for row in ROWS)
    assert list(map(len, answers.reference_tokens)) == list(map(len, answers.references))
    assert all(len(ids) <= 6 for of in answers.reference_tokens for ids in of)
    # Generated text is compared in the same tokens that are trained.
    assert answers.reference_tokens[0][0] == tuple(answer_of(encoded(tokenizer), 0)[:-1])
    assert tokenizer.decode(answers.reference_tokens[0][1]).strip() == "Denver Broncos"


def test_a_decoder_answers_after_a_space(reference_folder: Path) -> None:
    tokenizer = load_tokenizer(reference_folder / "tokenizers" / "gpt2", ("eos",))
    split = encoded(tokenizer)
    row = split.tokens[split.offsets[0] : split.offsets[1]].tolist()
    whole = tokenizer.word_tokens("Who was it?\nAnswer: Denver")
    assert [*row, *answer_of(split, 0)[:-1]] == whole


def test_batches_hold_the_answers_of_their_rows(tokenizer: TextTokenizer) -> None:
    split, pad = encoded(tokenizer), 77
    batch = make_batch(split, np.array([2, 0]), 4, 32, pad)
    assert batch.answers.shape == (4, 7) and batch.answers.dtype == np.int32
    for slot, row in enumerate([2, 0, 2, 2]):
        expected = answer_of(split, row)
        assert batch.answer_lengths[slot] == len(expected)
        assert batch.answers[slot].tolist() == [*expected, *[pad] * (7 - len(expected))]
    rows = [numbers for numbers, _ in evaluation_batches(split, 2, 32, pad)]
    assert sorted(np.concatenate(rows)) == [0, 1, 2]


SHORT_ECHO = dataclasses.replace(ECHO, answer_tokens=2)
WORDS = ("the", "film", "good", "one", "two", "three")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def rows_of(count: int, generative: bool = False) -> list[dict[str, object]]:
    random = np.random.default_rng(count)

    def text(length: int) -> str:
        return " ".join(random.choice(WORDS, length))

    if generative:
        answers = [tuple(text(1 + k) for k in range(1 + i % 3)) for i in range(count)]
        return [{"text": text(1 + i % 9), "answers": answers[i]} for i in range(count)]
    return [{"text": text(1 + i % 9), "label": SST2.labels[i % 2]} for i in range(count)]


def assert_equal(found: EncodedSplit, expected: EncodedSplit) -> None:
    for name in ("tokens", "offsets", "labels"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(ours, theirs, strict=True)
    assert found.cut_rows == expected.cut_rows
    assert (found.answers is None) == (expected.answers is None)
    if expected.answers is not None:
        np.testing.assert_equal(vars(found.answers), vars(expected.answers))


@pytest.mark.parametrize("task", [SST2, SHORT_ECHO], ids=["labels", "answers"])
def test_a_cached_split_equals_a_new_one(task, toy_tokenizer, folder, monkeypatch) -> None:
    rows = rows_of(600, task.is_generative)
    layout = "decoder" if task.is_generative else "encoder"
    fresh = encode_split(rows, task, toy_tokenizer, 8, layout)
    assert_equal(encode_cached(rows, task, toy_tokenizer, 8, layout), fresh)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(encode, "encode_split", None)  # not called again
    assert_equal(encode_cached(rows, task, toy_tokenizer, 8, layout), fresh)


def test_the_key_covers_all_inputs(toy_tokenizer: TextTokenizer, folder: Path) -> None:
    rows = rows_of(600)
    changed = [*rows[:-1], {**rows[-1], "text": "film"}]
    swapped = [*rows[:-1], {**rows[-1], "label": "negative"}]
    other = dataclasses.replace(SST2, templates={"encoder": ("the {text}",)})
    reversed_labels = dataclasses.replace(SST2, labels=SST2.labels[::-1])
    contents = set()
    for given, task, limit in (
        *((rows, SST2, 8), (rows, SST2, 9), (changed, SST2, 8)),
        *((swapped, SST2, 8), (rows, other, 8), (rows, reversed_labels, 8)),
    ):
        found = encode_cached(given, task, toy_tokenizer, limit)
        assert_equal(found, encode_split(given, task, toy_tokenizer, limit))
        contents.add(found.content)
    assert len(list(folder.iterdir())) == 6 and len(contents) == 3


def test_a_broken_file_is_replaced(toy_tokenizer: TextTokenizer, folder: Path) -> None:
    rows = rows_of(600)
    fresh = encode_cached(rows, SST2, toy_tokenizer, 8)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(content)
        assert_equal(encode_cached(rows, SST2, toy_tokenizer, 8), fresh)
        assert file.read_bytes() == whole


def test_small_splits_and_unusable_folders(toy_tokenizer, folder, monkeypatch, tmp_path) -> None:
    few = (rows_of(20), SST2, toy_tokenizer, 8)
    assert_equal(encode_cached(*few), encode_split(*few))
    assert not folder.exists()
    rows = rows_of(600)
    fresh = encode_split(rows, SST2, toy_tokenizer, 8)
    (tmp_path / "file").write_text("")
    for place in ("", str(tmp_path / "file")):
        monkeypatch.setenv("JPT_CACHE", place)
        assert_equal(encode_cached(rows, SST2, toy_tokenizer, 8), fresh)


def test_the_folder_stays_small(toy_tokenizer: TextTokenizer, folder: Path, monkeypatch) -> None:
    encode_cached(rows_of(600), SST2, toy_tokenizer, 8)
    size = next(folder.iterdir()).stat().st_size
    monkeypatch.setattr(encode, "MOST_BYTES", int(2.5 * size))
    for limit in (9, 10, 11):
        encode_cached(rows_of(600), SST2, toy_tokenizer, limit)
    assert len(list(folder.iterdir())) == 2
