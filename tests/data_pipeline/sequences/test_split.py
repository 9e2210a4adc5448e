"""The split keeps clusters whole, repeats by its seed, fills every part; the leakage check sees a planted leak."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.schema import SPLITS
from data_pipeline.sequences.split import check_leakage, plan, split

THIRDS = {"train": 0.6, "validation": 0.2, "test": 0.2}


def family(sizes: list[int]) -> dict[str, list[str]]:
    """Return clusters of these sizes with made-up ids."""
    return {f"c{n:03}m000": [f"c{n:03}m{m:03}" for m in range(size)] for n, size in enumerate(sizes)}


MIRROR_LIKE = family([189, 133, 104, 32, 20] + [2] * 100 + [1] * 100)


@pytest.mark.parametrize("seed", range(5))
def test_clusters_stay_whole_and_nothing_is_lost(seed):
    """Every entry is in one split, and its whole cluster with it."""
    chosen = split(MIRROR_LIKE, fractions=THIRDS, seed=seed)
    assert sorted(chosen) == sorted(entry for ids in MIRROR_LIKE.values() for entry in ids)
    for ids in MIRROR_LIKE.values():
        assert len({chosen[entry] for entry in ids}) == 1


def test_fractions_are_met():
    """With many small clusters the shares come out within an entry or two, although some families are huge."""
    sizes = Counter(split(MIRROR_LIKE, fractions=THIRDS).values())
    total = sum(sizes.values())
    for name, share in THIRDS.items():
        assert abs(sizes[name] - share * total) <= 2


def test_seed_decides_and_order_of_input_does_not():
    """The same seed gives the same split from shuffled input; other seeds give others."""
    turned = {name: list(reversed(ids)) for name, ids in reversed(MIRROR_LIKE.items())}
    assert split(MIRROR_LIKE, fractions=THIRDS, seed=4) == split(turned, fractions=THIRDS, seed=4)
    assert len({tuple(split(MIRROR_LIKE, fractions=THIRDS, seed=seed).items()) for seed in range(6)}) == 6
    counts = {"train": 100, "validation": 50, "test": 50}
    assert split(MIRROR_LIKE, counts=counts, seed=4) == split(turned, counts=counts, seed=4)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [50, 1, 1], [3, 50, 40], [1] * 4, [20, 1, 1, 1], [1] * 8])
@pytest.mark.parametrize("fractions", [THIRDS, {"train": 0.98, "validation": 0.01, "test": 0.01}])
def test_no_split_is_empty_when_three_clusters_exist(sizes, fractions):
    """From three clusters on, train, validation and test each get one, however small their share."""
    for seed in range(10):
        assert set(split(family(sizes), fractions=fractions, seed=seed).values()) == set(SPLITS)


def test_fewer_clusters_than_splits():
    """One cluster goes to training; a split that asks for nothing gets nothing."""
    assert set(split(family([5]), fractions=THIRDS).values()) == {"train"}
    assert set(split(family([1] * 9), fractions={"train": 2, "test": 1}).values()) == {"train", "test"}
    assert split({}, fractions=THIRDS) == {}


def test_counts_are_exact_and_clusters_do_not_cross():
    """The paper's 100, 50 and 50 are drawn; the members of a cluster that are drawn lie in one split."""
    counts = {"train": 100, "validation": 50, "test": 50}
    chosen = split(MIRROR_LIKE, counts=counts, seed=1)
    assert Counter(chosen.values()) == counts
    for ids in MIRROR_LIKE.values():
        assert len({chosen[entry] for entry in ids if entry in chosen}) <= 1


PAPER = {"train": 100, "validation": 50, "test": 50}


def cluster_of(entry: str) -> str:
    return entry[:4]


def test_even_draw_takes_a_second_member_only_when_every_cluster_has_given_one():
    """Large families do not crowd out others: 200 entries of 205 clusters are 200 clusters' own."""
    chosen = split(MIRROR_LIKE, counts=PAPER, draw="even", seed=3)
    assert Counter(chosen.values()) == PAPER
    assert len(set(map(cluster_of, chosen))) == 200
    fewer = split(family([30, 20, 10, 2, 1, 1]), counts={"train": 12, "test": 8}, draw="even", seed=3)
    for part in ("train", "test"):
        sizes = Counter(cluster_of(entry) for entry, where in fewer.items() if where == part)
        whole = {f"c{n:03}": size for n, size in enumerate([30, 20, 10, 2, 1, 1])}
        assert all(n == whole[name] or n >= max(sizes.values()) - 1 for name, n in sizes.items())


@pytest.mark.parametrize("draw", ["random", "even"])
def test_a_limit_is_the_beginning_of_the_whole(draw):
    """Every limit takes what a smaller one takes, keeps the ratio of the splits, and spreads over clusters."""
    whole = plan(MIRROR_LIKE, counts=PAPER, draw=draw, seed=2).chosen()
    before: dict[str, str] = {}
    for limit in (1, 2, 3, 7, 20, 60, 199, 200, 500):
        chosen = plan(MIRROR_LIKE, counts=PAPER, draw=draw, seed=2, limit=limit).chosen()
        assert len(chosen) == min(limit, 200)
        assert before.items() <= chosen.items() <= whole.items()
        before = chosen
        sizes = Counter(chosen.values())
        if limit >= 3:
            assert all(abs(sizes[name] - limit * PAPER[name] / 200) <= 1 for name in SPLITS) or limit == 500
        for part in SPLITS:
            of_part = [cluster_of(entry) for entry in chosen if chosen[entry] == part]
            of_whole = {cluster_of(entry) for entry in whole if whole[entry] == part}
            assert len(set(of_part)) == min(len(of_part), len(of_whole))


def test_small_ones_first_where_asked():
    """With sizes, a limit takes the smallest member of each cluster, and the smallest clusters first."""
    sizes = {entry: 1000 - n for n, entry in enumerate(sorted(e for ids in MIRROR_LIKE.values() for e in ids))}
    chosen = plan(MIRROR_LIKE, fractions={"train": 1.0}, size_of=sizes, limit=5).chosen()
    assert sorted(sizes[entry] for entry in chosen) == sorted(sizes.values())[:5]


def test_lost_entries_are_replaced_by_the_next_of_their_split():
    """Whoever cannot be used makes room for others of the same split's clusters; nobody else moves."""
    ready = plan(MIRROR_LIKE, counts=PAPER, draw="even", seed=1)
    first = ready.chosen()
    lost = {entry for n, entry in enumerate(first) if n % 9 == 0}
    second = ready.chosen(lost)
    assert Counter(second.values()) == PAPER and not lost & set(second)
    assert set(first) - lost <= set(second)
    for ids in MIRROR_LIKE.values():
        assert len({second[entry] for entry in ids if entry in second}) <= 1
    everything = plan(family([3, 2]), fractions={"train": 1.0})
    assert set(everything.chosen({"c000m000"})) == {"c000m001", "c000m002", "c001m000", "c001m001"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either fractions or counts"),
        ({"fractions": THIRDS, "counts": {"train": 1}}, "either fractions or counts"),
        ({"fractions": {"train": 0.5, "tset": 0.5}}, "tset. Allowed: train, validation, test"),
        ({"fractions": {"train": -1.0}}, "no negative share"),
        ({"counts": {"train": 0}}, "at least one above 0"),
        ({"counts": {"train": 9, "test": 9}}, "ask for fewer"),
    ],
)
def test_wrong_requests_are_told(arguments, message):
    """Each request that cannot be met says why and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        split(family([2, 2, 2]), **arguments)


def chain(seed: int) -> str:
    return "".join(random.Random(seed).choices("ACDEFGHIKLMNPQRSTVWY", k=80))


def test_leakage_check_sees_a_planted_leak_and_nothing_else():
    """Unrelated sequences across splits and relatives within one are fine; a relative across is found and named."""
    parent = chain(1)
    relative = "".join("W" if n % 3 == 0 else residue for n, residue in enumerate(parent))
    sequences = {"aaaa": parent, "bbbb": relative, "cccc": chain(2), "dddd": chain(3)}
    sound = {"aaaa": "train", "bbbb": "train", "cccc": "validation", "dddd": "test"}
    assert check_leakage(sequences, sound, 0.2, "python") == []
    (leak,) = check_leakage(sequences, sound | {"bbbb": "test"}, 0.2, "python")
    assert (leak.first, leak.second, leak.first_split, leak.second_split) == ("aaaa", "bbbb", "train", "test")
    assert 0.6 < leak.identity < 0.8
    assert check_leakage(sequences, sound | {"bbbb": "test"}, 0.9, "python") == []


def test_leakage_check_needs_every_sequence():
    """An entry of the split without a sequence is an error, not silence."""
    with pytest.raises(ConfigError, match="no sequence for bbbb"):
        check_leakage({"aaaa": chain(1)}, {"aaaa": "train", "bbbb": "test"}, method="python")
