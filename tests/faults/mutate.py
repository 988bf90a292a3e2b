"""Ways in which a file goes wrong. Each mutator takes a generator and the good bytes and gives bad ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Mutator = Callable[[random.Random, bytes], bytes]
PIECES = (
    *(b"\0", b"\r", b"\n", b"\r\n", b"\t", b'"', b"'", b"\\", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80"),
    *("\u2028".encode(), "\x85".encode(), b"\x1c", b"\x0b", b"\\ud800", b"\\u0000", b"{", b"[", b"}", b"]", b",", b":"),
    *(b"NaN", b"Infinity", b"1e999", b"-1", b"9" * 30, b"9" * 5000, b"null", b"true", b"${oc.env:HOME}", b"!!python/x"),
    *(b"../", b"/", b"&a [*a]", b"[" * 3000, b"\xf4\x90\x80\x80", b"-\t-\t-", b"x" * 5000),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", " ", "a\tb", "a\nb", "\0", "\ud800", "../../x", "x" * 3000, "-", "entailment", "${oc.env:HOME}", "en"),
    *([], {}, [[]], {"": ""}, [0] * 100, ["a", 1, None], {"a": {"b": {}}}),
)


def flip(rng: random.Random, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw))]


def behead(rng: random.Random, raw: bytes) -> bytes:
    return raw[rng.randrange(len(raw)) :]


def insert(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + rng.choice(PIECES) * rng.choice((1, 1, 1, 2, 50)) + raw[at:]


def overwrite(rng: random.Random, raw: bytes) -> bytes:
    at, piece = rng.randrange(len(raw)), rng.choice(PIECES)
    return raw[:at] + piece + raw[at + len(piece) :]


def remove(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + raw[at + rng.randrange(1, 40) :]


def double(rng: random.Random, raw: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    return raw[:b] + raw[a:b] * rng.choice((1, 2, 30)) + raw[b:]


def shuffle_lines(rng: random.Random, raw: bytes) -> bytes:
    """Lines doubled, dropped, moved, emptied or joined: missing headers, headers twice, columns too many."""
    lines = raw.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        lines.insert(other, lines[at])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lines[at] = b""
    elif kind == 4:
        lines[at] += b"\t" + lines[other]
    else:
        fields = lines[at].split(b"\t")
        rng.shuffle(fields)
        lines[at] = b"\t".join(fields[: rng.randrange(1, len(fields) + 1)])
    return b"\n".join(lines)


def recode(rng: random.Random, raw: bytes) -> bytes:
    codec = rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7", "latin-1"))
    return raw.decode("utf-8", errors="replace").encode(codec, errors="replace")


def ends(rng: random.Random, raw: bytes) -> bytes:
    return raw.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", b"\n\r", b"", b"\0\n", b" \n")))


def noise(rng: random.Random, raw: bytes) -> bytes:
    return rng.randbytes(rng.choice((1, 4, 100, 3000)))


def long_line(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + rng.choice((b"a", b" ", b"\t", b"{", b"[", b"\xe4\xb8\xad", b'"')) * 1_200_000 + raw[at:]


BYTES: tuple[Mutator, ...] = (flip, flip, cut, behead, insert, insert, overwrite, remove, double, noise)
LINES: tuple[Mutator, ...] = (*BYTES, shuffle_lines, shuffle_lines, recode, ends)


def tree(rng: random.Random, raw: bytes) -> bytes:
    """Changes one value of a JSON file, or of one line of JSON lines: its type, its range, its name, its depth."""
    lines = raw.split(b"\n") if raw.count(b"\n{") else [raw]
    at = rng.choice([i for i, line in enumerate(lines) if line.strip()] or [0])
    try:
        content = json.loads(lines[at])
    except (ValueError, RecursionError):
        return flip(rng, raw)
    places = list(_places(content))
    if not places:
        return flip(rng, raw)
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "x" * 300, key + " ", "\ud800", "../a"))] = holder.pop(key)
    elif kind == 2:
        value = holder[key]
        for _ in range(rng.choice((1, 30, 400))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        holder[key] = value
    elif kind == 3 and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] * rng.choice((-1, 0, 2, 1000, 10**9, 0.5)) + rng.choice((0, 1, -1))
    else:
        holder[key] = rng.choice(VALUES)
    text = json.dumps(content)
    if kind == 5 and isinstance(holder, dict) and key in holder:  # the same key twice in one object
        spelt = json.dumps(key) + ": "
        text = text.replace(spelt, f"{spelt}{json.dumps(rng.choice(VALUES))}, {spelt}", 1)
    lines[at] = text.encode("utf-8", errors="surrogatepass")
    return b"\n".join(lines)


def _places(content: Any) -> list[tuple[Any, Any]]:
    """(holder, key or index) of values; of long lists the first ones."""
    found: list[tuple[Any, Any]] = []
    todo = [content] if isinstance(content, (dict, list)) else []
    while todo:
        holder = todo.pop()
        inside = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, value in inside[:40]:
            found.append((holder, key))
            if isinstance(value, (dict, list)):
                todo.append(value)
    return found


JSON: tuple[Mutator, ...] = (*LINES, *([tree] * 14))
