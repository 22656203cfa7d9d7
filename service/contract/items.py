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
TOKENS_MAX = 50_000  # of an array that is not JSON; the scanner takes some 50 ms for them, and then gives up

# A decoder for list[Raw] would read any number of items, 4 MiB of `1,` in 0.35 s, before it looked at its limit.
ARRAY = Decoder(
    defstruct(
        "Items",
        [(f"item_{number}", Raw | UnsetType, UNSET) for number in range(ITEMS_MAX)],
        array_like=True,
        forbid_unknown_fields=True,
    )
)
LINE = re.compile(rb"[^ \t\r\n][^\n]*")  # without white space before it

# The scanner's regular expressions never backtrack. (Python 3.11.2 matches possessive quantifiers wrongly.)
TOKEN = re.compile(rb'"[^"]*"?|[\[\]{},]')  # a string, which may be cut off, or structure
INNER_TOKEN = re.compile(rb'"[^"]*"?|[\[\]{}]')  # within an item
STRUCTURE = re.compile(rb"[\[\]{},]")
WORD = re.compile(rb'[^\s"\[\]{},]*')
WORD_OR_STRING = re.compile(rb'[^\s"\[\]{},]*("[^"]*")?')
BEFORE_STRING, AFTER_STRING = WHITE_SPACE + b":,[{", WHITE_SPACE + b":,]}"
NO_VALUE = WHITE_SPACE + bytes(range(0x80, 0x100))  # bytes beyond ASCII belong to strings, or to a byte order mark


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
    """The items of an array that is not JSON, whatever they contain. Raises ValueError if their bounds are not clear.
    They are clear if strings and brackets are balanced, and each item is a single value."""
    text = body.replace(b"\\\\", b"__").replace(
        b'\\"', b"__"
    )  # of the same length, with strings free of escaped quotes
    start = text.index(b"[") + 1  # of the item
    end, depth, value_end = start, 1, 0
    for _ in range(TOKENS_MAX):
        if not (token := (TOKEN if depth == 1 else INNER_TOKEN).search(text, end)):
            break
        at, end = token.span()
        kind = text[at : at + 1]
        if kind == b'"':
            check_string(text, at, end)
        elif kind in b"[{":
            if depth == 1 and (value_end or not WORD.fullmatch(text[start:at].lstrip(NO_VALUE))):
                break
            depth += 1
        elif depth > 1:
            depth -= 1
            value_end = end if depth == 1 else value_end
        else:
            if kind == b"}" or not is_single(text, start, value_end, at):
                break
            yield body[start:at].strip(WHITE_SPACE)
            if kind == b"]":
                if text[end:].strip(WHITE_SPACE):
                    break
                return
            start, value_end = end, 0
    raise ValueError("the bounds of the items are not clear")


def check_string(text: bytes, at: int, end: int) -> None:
    """Raises ValueError if the string is cut off, or surely no string: after a quotation mark that is not escaped,
    strings seem to begin and end in the wrong places, and touch other text. If they hold structure, two items could
    pass for one."""
    whole = end - at > 1 and text[end - 1 : end] == b'"'
    touches = text[at - 1] not in BEFORE_STRING or text[end : end + 1] not in AFTER_STRING
    if not whole or (touches and STRUCTURE.search(text, at, end)):
        raise ValueError("not a string")


def is_single(text: bytes, start: int, value_end: int, end: int) -> bool:
    """Whether an item is one value; `value_end` is the end of an array or object in it, or 0."""
    if value_end:
        return not text[value_end:end].strip(NO_VALUE)
    item = text[start:end].strip(WHITE_SPACE)
    return item != b"" and WORD_OR_STRING.fullmatch(item.strip(NO_VALUE)) is not None


BATCH = BodyKind(4_194_304, split_array, split_lines)
