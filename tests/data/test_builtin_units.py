"""What is taken from one review, on reviews made up for the purpose."""

from collections import Counter

import pytest

from jpt.data.builtin import RECIPES, TASKS, WORD, NamedRandom, Unit

SENTENCES = [
    "I saw this film with my brother on a cold evening in March.",
    "The plot is thin, and the jokes are old ones from the stage.",
    "Who would ever pay to see that twice in one week?",
    "My brother slept through the whole of the second half of it.",
    "What a pity for such a fine cast and a good director!",
    "The last scene alone is worth the price of the ticket here.",
    "Still, I would not see it again for all the money around.",
]
REVIEW = " ".join(SENTENCES)
SNIPPET = "a thin plot , old jokes and a fine cast that deserves better than this ."


def units(name: str, text: str, n_draws: int = 30) -> list[Unit]:
    found = [RECIPES[name].make(text, NamedRandom(str(i))) for i in range(n_draws)]
    assert None not in found
    return found


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def test_every_task_has_a_recipe_and_every_recipe_a_task() -> None:
    assert set(RECIPES) == {task.short_name for task in TASKS.values()}


@pytest.mark.parametrize("name", RECIPES)
def test_the_form_fits_the_fields(name: str) -> None:
    n_fields = len(TASKS[f"builtin/{name}"].fields)
    assert n_fields == (2 if RECIPES[name].form == "pair" else 1)


@pytest.mark.parametrize("kind", ["scrambled", "reversed"])
@pytest.mark.parametrize(("source", "text"), [("imdb", REVIEW), ("rotten_tomatoes", SNIPPET)])
def test_moved_words_are_the_same_words_in_small_letters(kind: str, source: str, text: str) -> None:
    for moved, natural in units(f"{source}_{kind}", text):
        assert natural in text.lower() and natural == natural.lower()
        assert Counter(words(moved)) == Counter(words(natural)) and moved != natural
        assert WORD.sub("_", moved) == WORD.sub("_", natural)


def test_the_next_sentence_is_the_next_one() -> None:
    pairs = {tuple(map(SENTENCES.index, unit)) for unit in units("imdb_next_sentence", REVIEW)}
    assert pairs == {(i, i + 1) for i in range(6)}


def test_the_next_passage_follows_the_first() -> None:
    for first, second in units("imdb_next_passage", REVIEW):
        assert f"{first} {second}" in REVIEW


def test_sentences_of_one_review_are_never_neighbours() -> None:
    for first, second in units("imdb_same_review", REVIEW):
        assert SENTENCES.index(second) - SENTENCES.index(first) >= 2


@pytest.mark.parametrize(("source", "text"), [("imdb", REVIEW), ("rotten_tomatoes", SNIPPET)])
def test_halves_and_copies_come_from_one_sentence(source: str, text: str) -> None:
    for first, second in units(f"{source}_halves", text):
        assert f"{first} {second}" in text
    for first, copy in units(f"{source}_copy", text):
        assert first in text
        assert Counter(words(copy)) <= Counter(words(first))
        assert copy == " ".join(words(copy))


@pytest.mark.parametrize(("name", "place"), [("imdb_opening", 0), ("imdb_closing", -1)])
def test_a_placed_sentence_is_compared_with_one_of_the_middle(name: str, place: int) -> None:
    for other, placed in units(name, REVIEW):
        assert placed == SENTENCES[place]
        assert other in SENTENCES[1:-1]
        assert abs(len(other.split()) - len(placed.split())) <= 2


@pytest.mark.parametrize(("name", "place"), [("imdb_question", 2), ("imdb_exclamation", 4)])
def test_end_marks_are_taken_away(name: str, place: int) -> None:
    for statement, marked in units(name, REVIEW):
        assert marked == SENTENCES[place][:-1] + "."
        assert statement in SENTENCES
        assert abs(len(statement.split()) - len(marked.split())) <= 2


def test_an_ending_is_whole_sentences_of_the_end() -> None:
    ((ending, _),) = set(units("imdb_ending", REVIEW))
    assert ending == " ".join(SENTENCES[-2:])


@pytest.mark.parametrize(
    "name", [n for n, r in RECIPES.items() if r.make is not RECIPES["imdb"].make]
)
@pytest.mark.parametrize("text", ["Good.", "* * * * * * * * * *.", "go " * 12 + "."])
def test_reviews_that_do_not_serve_give_nothing(name: str, text: str) -> None:
    unit = RECIPES[name].make(text, NamedRandom("a"))
    assert unit is None or (name.endswith(("halves", "copy", "reversed")) and "go" in text)
