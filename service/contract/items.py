"""Bodies of batches: from an array or from lines to the items, each still undecoded.

The work ends at the first item over the limit, whatever follows.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

import msgspec
from msgspec import UNSET, Raw, UnsetType, defstruct
from msgspec.json import Decoder
from msgspec.structs import astuple

from service.contract.body import WHITE_SPACE, BodyKind, check_kind, not_json
from service.contract.fields import READ_ERRORS
from service.problems import ProblemError

ITEMS_MAX = 1000
# In an array that is not JSON, the scanner gives up beyond these, so that it ends within some 50 ms.
STEPS_MAX = 50_000  # brackets, and commas between items
QUOTES_MAX = 500_000

# A decoder for list[Raw] would read any number of items, 4 MiB of `1,` in 0.35 s, before it looked at its limit.
ARRAY = Decoder(
    defstruct(
        "Items",
        [(f"item_{number}", Raw | UnsetType, UNSET) for number in range(ITEMS_MAX)],
        array_like=True,
        forbid_unknown_fields=True,
    )
)
LINE = re.compile(rb"[^ \t\r\n][^\n]*+")  # without white space before it

# In an array that is not JSON, the bounds of the items are clear if strings and brackets are balanced and each item is
# a single value. After an unescaped quotation mark, strings seem to begin and end in the wrong places: they touch other
# text. If such a string holds a bracket or comma, the bounds are not clear, or two items could pass for one.
SPACE = rb"[ \t\r\n\x80-\xff]*+"  # no value has bytes beyond ASCII outside strings, but a mark has
STRING = rb'(?:(?<=[\s:,\[{])"(?:[^"\\]++|(?:\\.)++)*+"(?=[\s:,\]}])|"(?:[^"\\\[\]{},]++|(?:\\.)++)*+")'
FIRST = re.compile(SPACE + rb'[^\s"\[\]{},]*+(?:[\[{]|' + STRING + rb"?+" + SPACE + rb"[,\]])", re.DOTALL)
INSIDE = re.compile(rb'(?:[^"\[\]{}]++|' + STRING + rb")*+[\[\]{}]", re.DOTALL)
LAST = re.compile(SPACE + rb"[,\]]")


def split_array(body: bytes) -> list[bytes]:
    """Raises ProblemError for a body that is no array, and for one that is not JSON, if the bounds of its items are
    not clear."""
    check_kind(body, "array", b"[")
    try:
        return [bytes(item) for item in astuple(ARRAY.decode(body)) if item is not UNSET]
    except msgspec.ValidationError:  # the body is an array, so it can only have too many items
        raise too_many() from None
    except READ_ERRORS as error:
        try:
            return limited(scan_array(body))
        except ValueError:
            raise not_json(body, "array", error) from None


def split_lines(body: bytes) -> list[bytes]:
    """Blank lines are skipped. Raises ProblemError."""
    return limited(match[0].rstrip(WHITE_SPACE) for match in LINE.finditer(body))


def limited(items: Iterable[bytes]) -> list[bytes]:
    found = list(islice(items, ITEMS_MAX + 1))
    if len(found) > ITEMS_MAX:
        raise too_many()
    return found


def too_many() -> ProblemError:
    return ProblemError("PAYLOAD_TOO_LARGE", f"Expected at most {ITEMS_MAX} items.")


def scan_array(body: bytes) -> Iterator[bytes]:
    """The items of an array, whatever they contain. Raises ValueError where their bounds are not clear."""
    start = at = body.index(b"[") + 1
    depth, expected = 1, FIRST
    for _ in range(STEPS_MAX if body.count(b'"') <= QUOTES_MAX else 0):
        if not (match := expected.match(body, at)):
            break
        at = match.end()
        last = body[at - 1 : at]
        if last in b"[{":
            depth, expected = depth + 1, INSIDE
        elif depth > 1:
            depth -= 1
            expected = INSIDE if depth > 1 else LAST
        else:
            item = body[start : at - 1].strip(WHITE_SPACE)
            if not item:
                break
            yield item
            start, expected = at, FIRST
            if last == b"]":
                if body[at:].strip(WHITE_SPACE):
                    break
                return
    raise ValueError("the bounds of the items are not clear")


BATCH = BodyKind(4_194_304, split_array, split_lines)
