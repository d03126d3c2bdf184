"""Choices by chance that never change."""

from jpt.data.builtin import NamedRandom


def test_the_choices_of_a_name_never_change() -> None:
    """Fixed splits rest on these: literals, from the generator that Python promises to keep."""
    draws = NamedRandom("name")
    assert [draws.pick("abcdefgh") for _ in range(6)] == ["g", "d", "f", "f", "g", "d"]
    assert draws.shuffled(range(8)) == [2, 5, 0, 4, 3, 7, 6, 1]


def test_names_have_different_choices() -> None:
    assert len({tuple(NamedRandom(str(i)).shuffled(range(20))) for i in range(20)}) == 20


def test_shuffling_keeps_every_item_and_the_items() -> None:
    items = [3, 1, 1, 2]
    assert sorted(NamedRandom("a").shuffled(items)) == [1, 1, 2, 3]
    assert items == [3, 1, 1, 2]


def test_picks_are_spread_evenly() -> None:
    draws = NamedRandom("even")
    counts = [0] * 5
    for _ in range(5000):
        counts[draws.pick(range(5))] += 1
    assert min(counts) > 860 and max(counts) < 1140  # 1000 each, 5 standard deviations
