"""A radix tree over token ids, with at most one entry at the end of each stored sequence.

It knows neither pages nor states, nor when an entry should go. Ids are kept and compared as bytes, eight for each: what
stands for a token of a picture is a hash.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

ID_BYTES = 8

Entry = TypeVar("Entry")


def pack(token_ids: Sequence[int]) -> bytes:
    """The key of a sequence of ids."""
    return array("q", token_ids).tobytes()


def shared(one: bytes, other: bytes) -> int:
    """How many ids two keys have in common from their beginning."""
    low, high = 0, min(len(one), len(other)) // ID_BYTES
    while low < high:  # the first ``low`` are equal; of the rest the nearer half is compared
        middle = (low + high + 1) // 2
        if one[low * ID_BYTES : middle * ID_BYTES] == other[low * ID_BYTES : middle * ID_BYTES]:
            low = middle
        else:
            high = middle - 1
    return low


class Node(Generic[Entry]):
    """The end of an ``edge`` of ids that begins where the parent ends; ``end`` counts all ids from the root."""

    __slots__ = ("children", "edge", "end", "entry", "parent")

    def __init__(self, parent: Node[Entry] | None, edge: bytes) -> None:
        self.parent = parent
        self.edge = edge
        self.end: int = len(edge) // ID_BYTES + (parent.end if parent else 0)
        self.children: dict[bytes, Node[Entry]] = {}
        self.entry: Entry | None = None

    def entries_above(self) -> Iterator[Entry]:
        """The entries between this node and the root, the nearest first."""
        node = self.parent
        while node is not None:
            if node.entry is not None:
                yield node.entry
            node = node.parent

    def any_entry(self) -> Entry | None:
        """An entry at or below this node; only the root of an empty tree has none."""
        node = self
        while node.entry is None and node.children:
            node = next(iter(node.children.values()))
        return node.entry


class Tree(Generic[Entry]):
    def __init__(self) -> None:
        self.root: Node[Entry] = Node(None, b"")

    def walk(self, key: bytes) -> tuple[int, list[Node[Entry]], Node[Entry]]:
        """How many ids of ``key`` are stored, the nodes they reach in order, and the node they end in or before."""
        node, passed = self.root, [self.root]
        while True:
            rest = key[node.end * ID_BYTES :]
            child = node.children.get(rest[:ID_BYTES])
            if child is None:
                return node.end, passed, node
            if not rest.startswith(child.edge):
                return node.end + shared(rest, child.edge), passed, child
            passed.append(child)
            node = child

    def insert(self, key: bytes) -> Node[Entry]:
        """The node at the end of ``key``, made where there is none; the caller gives it an entry."""
        matched, passed, below = self.walk(key)
        node = passed[-1]
        if matched > node.end:
            node = self._split(below, matched)
        if matched * ID_BYTES < len(key):
            leaf: Node[Entry] = Node(node, key[matched * ID_BYTES :])
            node.children[leaf.edge[:ID_BYTES]] = leaf
            node = leaf
        return node

    def remove(self, node: Node[Entry]) -> None:
        """Take the entry of ``node`` out, and with it every node that nothing needs any more."""
        node.entry = None
        self._prune(node)

    def _prune(self, node: Node[Entry]) -> None:
        while (parent := node.parent) is not None and node.entry is None and len(node.children) < 2:
            if node.children:
                (child,) = node.children.values()
                child.edge, child.parent = node.edge + child.edge, parent
                parent.children[child.edge[:ID_BYTES]] = child
                return
            del parent.children[node.edge[:ID_BYTES]]
            node = parent

    def _split(self, node: Node[Entry], at: int) -> Node[Entry]:
        """A node after ``at`` ids, in the middle of the edge of ``node``."""
        parent = node.parent
        assert parent is not None
        assert parent.end < at < node.end
        length = (at - parent.end) * ID_BYTES
        middle: Node[Entry] = Node(parent, node.edge[:length])
        parent.children[middle.edge[:ID_BYTES]] = middle
        node.edge, node.parent = node.edge[length:], middle
        middle.children[node.edge[:ID_BYTES]] = node
        return middle
