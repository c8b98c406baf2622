"""Files that are no checkpoint of torch's: what each is, and what to do about it."""

from __future__ import annotations

import re

from builder.sources.packing import Span
from builder.sources.stored import Malformed

_CONVERT = (
    "load it where it comes from, give its numbers to the torch network, and save that network's "
    "state_dict() with torch.save or as safetensors."
)
_UNPACK = "unpack it first."
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, which only says where the weights are",
        "run `git lfs pull` in its repository, or download the file itself.",
    ),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (as Keras writes them)", _CONVERT),
    (b"GGUF", "a GGUF file (quantised weights for llama.cpp)", _CONVERT),
    (b"\x93NUMPY", "one NumPy array", _CONVERT),
    (b"\x08\x01\x12", "a SavedModel of TensorFlow", _CONVERT),
    (b"\x28\xb5\x2f\xfd", "a file packed with zstd", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip file", "get the file from its source again."),
    (b"%PDF-", "a PDF", "give the address of the checkpoint itself."),
)
_LEVELDB = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of TensorFlow's .index files
_ONNX = re.compile(rb"\x08[\x01-\x1f][\x12\x3a]")  # its version, then its producer or its graph
_MERGE = "load all its parts, join their dictionaries, and save that as one safetensors file."


def refuse_foreign(span: Span) -> None:
    """Refuse a file whose bytes say at once that it is something else.

    Raises:
        Malformed: with what it is, and a hint.
    """
    head = span.head(1024)
    for beginning, what, hint in _BEGINNINGS:
        if head.startswith(beginning):
            raise Malformed(f"it is {what}", hint)
    if head.lstrip().startswith(b"<"):
        raise Malformed("it is a web page (most likely a server's refusal, saved in its place)")
    if span.memory[max(span.start, span.end - 8) : span.end] == _LEVELDB or re.search(
        r"\.data-\d{5}-of-\d{5}$", span.name
    ):
        raise Malformed("it is part of a checkpoint of TensorFlow", _CONVERT)
    if _ONNX.match(head):
        raise Malformed(
            "it is an ONNX model", "save the state_dict() of the network that was exported."
        )


def refuse_unknown(span: Span, why: str) -> None:
    """Refuse what no reader understands, as precisely as its beginning allows.

    Args:
        why: what the last reader said.

    Raises:
        Malformed: always.
    """
    head = span.head(1024)
    begins = f"it begins with {head[:8]!r}"
    try:
        text = head.decode()
    except UnicodeDecodeError as e:  # the cut may go through a letter
        text = head[: e.start].decode() if e.start > len(head) - 4 and e.start else "\0"
    if not head.strip(b"\0"):
        raise Malformed(f"{begins}: zeros, as in a file whose download was begun and not finished")
    if not all(c.isprintable() or c.isspace() for c in text):
        raise Malformed(f"{begins}, as no known format does ({why})")
    if '"weight_map"' in text or (text.lstrip().startswith("{") and ".index." in span.name):
        raise Malformed("it is the index of a checkpoint in several files (shards)", _MERGE)
    kind = "a JSON file" if text.lstrip()[:1] in ("{", "[") else "plain text"
    raise Malformed(
        f"it is {kind} ({begins[3:]})", "give the address of the weights that belong to it."
    )


def of_zip(names: list[str]) -> Malformed:
    """The error for a zip file that is none of torch's.

    Args:
        names: of its entries, sorted.
    """
    found = ", ".join(names[:3]) or "nothing"
    if any(n.endswith(".weights.h5") for n in names):
        return Malformed("it is a model of Keras", _CONVERT)
    if names and all(n.endswith(".npy") for n in names):
        return Malformed(f"it is a zip file of NumPy arrays (.npz: {found})", _CONVERT)
    return Malformed(f"it is a zip file, but none of torch's (it holds {found})")
