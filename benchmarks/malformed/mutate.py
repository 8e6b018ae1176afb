"""Random damage to bytes, texts and trees of plain values, all from one ``random.Random``."""

import copy
import random
from collections.abc import Callable
from typing import Any

# What programs that read numbers, names and lists are least prepared for.
NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    2,
    0.5,
    -0.0,
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**63,
    -(2**63),
    10**400,
    "",
    " ",
    "x",
    "1",
    "\0",
    "\ud800",
    "a\nb\x1b[2J",
    "../../../../etc/passwd",
    "/dev/null",
    "é" * 300,
    "%s%n{0}",
    [],
    {},
    [[]],
    [1, 2, 3, 4],
    [1, 2, 3, "4"],
    [None] * 4,
    [float("nan")] * 4,
    [1e308] * 4,
    [-5, -5, 100, 100],
    {"id": 1},
    list(range(300)),
]


def deep(depth: int) -> list:
    """A list in a list in a list ..."""
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cut off, flip, insert, remove, repeat, overwrite: one to three times."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(_BYTES)(rng, content)
    return content


def damage_tree(rng: random.Random, tree: Any) -> Any:
    """Replace, remove, repeat or move a random part, one to four times; changes ``tree`` and returns it."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return rng.choice(NASTY)
        # Deep places are many; each depth gets the same chance, so that whole lists are hit, too.
        depth = rng.choice(sorted({depth for depth, _, _ in places}))
        _, holder, key = rng.choice([place for place in places if place[0] == depth])
        action = rng.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        elif action == 2:
            _, other, other_key = rng.choice(places)
            if other_key in other if isinstance(other, dict) else other_key < len(other):
                holder[key] = copy.deepcopy(other[other_key])  # a copy: no value holds itself
        elif action == 3 and isinstance(holder, dict):
            holder[rng.choice(("x", key.upper(), key + " "))] = holder.pop(key)
        elif action == 4:
            holder[key] = deep(rng.choice((3, 60)))
        else:
            holder[key] = rng.choice(NASTY)
    return tree


def _places(tree: Any, depth: int = 0, most: int = 12):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield depth, tree, key
        if depth < most:
            yield from _places(value, depth + 1, most)


def _cut(rng, content):
    return content[: rng.randrange(len(content) + 1)]


def _flip(rng, content):
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(rng, content):
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 4, 200))) + content[at:]


def _remove(rng, content):
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at + rng.choice((1, 4, 200)) :]


def _repeat(rng, content):
    at = rng.randrange(len(content) + 1)
    length = rng.choice((1, 10, 300))
    return content[: at + length] + content[at:]


def _overwrite(rng, content):
    at, length = rng.randrange(len(content) + 1), rng.choice((2, 4, 8, 64))
    filling = rng.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * length
    return content[:at] + filling + content[at + length :]


def _swap_halves(rng, content):
    at = rng.randrange(len(content) + 1)
    return content[at:] + content[:at]


_BYTES: list[Callable[[random.Random, bytes], bytes]] = [
    _cut,
    _cut,
    _flip,
    _flip,
    _flip,
    _insert,
    _remove,
    _repeat,
    _overwrite,
    _overwrite,
    _swap_halves,
]
