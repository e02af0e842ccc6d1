"""The radix tree against a plain dictionary of sequences: the same matches, and no node that nothing needs."""

from __future__ import annotations

import random

from qwench.cache.tree import ID_BYTES, Node, Tree, pack, shared


def count(node: Node[str]) -> int:
    return 1 + sum(count(child) for child in node.children.values())


def common(one: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_shared_counts_whole_ids() -> None:
    rng = random.Random(1)
    for _ in range(500):
        one = [rng.choice([0, 1, 256, 257]) for _ in range(rng.randrange(12))]
        other = one[: rng.randrange(13)] + [rng.choice([0, 1, 256, 257]) for _ in range(rng.randrange(12))]
        assert shared(pack(one), pack(other)) == common(one, other)


def test_random_sequences_are_found_like_in_a_list() -> None:
    rng = random.Random(2)
    tree: Tree[str] = Tree()
    stored: dict[tuple[int, ...], Node[str]] = {}
    for _ in range(4000):
        ids = [rng.randrange(3) for _ in range(rng.randint(1, 9))]
        if rng.random() < 0.5:
            node = tree.insert(pack(ids))
            node.entry = str(ids)
            stored[tuple(ids)] = node
        elif stored:
            tree.remove(stored.pop(rng.choice(list(stored))))
        asked = [rng.randrange(3) for _ in range(rng.randint(0, 10))]
        matched, passed, below = tree.walk(pack(asked))
        assert matched == max((common(asked, list(each)) for each in stored), default=0)
        inside = sorted(len(each) for each in stored if list(each) == asked[: len(each)])
        assert [node.end for node in passed if node.entry is not None] == inside
        entry = below.any_entry()
        assert (entry is None) == (not stored)
        for each, node in stored.items():
            assert node.entry == str(list(each))
            assert node.end == len(each)
            above = sorted((len(a) for a in stored if len(a) < len(each) and a == each[: len(a)]), reverse=True)
            assert [len(eval(entry)) for entry in node.entries_above()] == above  # noqa: S307 - our own lists
        assert count(tree.root) <= 2 * len(stored) + 1  # every node has an entry, or two ways on
    for node in stored.values():
        tree.remove(node)
    assert count(tree.root) == 1


def test_an_edge_of_one_id_is_four_bytes() -> None:
    tree: Tree[str] = Tree()
    assert len(tree.insert(pack([1 << 20])).edge) == ID_BYTES
