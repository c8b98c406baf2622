"""What in an address must stay with the person who wrote it, and texts without it."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus, urlsplit, urlunsplit


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORDS = _words(
    "accesskey accesskeyid apikey auth authkey authorization awsaccesskeyid bearer code credential "
    "credentials expires expiration expiry googleaccessid hmac jwt key keypairid nonce "
    "ossaccesskeyid otp pass passcode passphrase passwd password policy private privatekey pwd "
    "refresh rlkey sas secret secretkey security session sessionid sid sig sign signature signed "
    "tempauth ticket token"
)
"""A parameter is secret if one of these is in its name, as a word or as a whole."""
_SIGNED = ("x-amz-", "x-goog-", "x-ms-", "x-oss-", "x-cos-", "q-")
_HARMLESS = frozenset({"resourcekey", "keyword", "keywords"})  # Drive's stands in its public links
_COMPANIONS = {
    "sig": _words("sv se st sr sp ss srt spr sip sdd skoid sktid skt ske sks skv ses"),  # Azure
    "hm": frozenset({"ex", "is", "hm"}),  # Discord
}
"""Parameters without a telling name that belong to a signature, by the one that gives it away."""
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|sk-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]+)?)"
)
"""Tokens whose form gives them away wherever they stand."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>|]+")


def public(url: str) -> str:
    """The address without user and password and without secret parameters of its query.

    What names the file is kept, so that two files of one server keep two addresses.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # no address at all: nothing after the first @ or ? is sure to be harmless
        return re.split(r"[?#]", re.sub(r"//[^/]*@", "//", url))[0]
    host = parts.netloc.rpartition("@")[2]
    query, fragment = _without_secrets(parts.query), _without_secrets(parts.fragment)
    if (host, query, fragment) == (parts.netloc, parts.query, parts.fragment):
        return url  # not one character otherwise
    return urlunsplit((parts.scheme, host, parts.path, query, fragment))


def redact(text: str) -> str:
    """A text of others without tokens, and with public addresses only, their queries left out."""
    text = _URL.sub(lambda m: public(m[0]).partition("?")[0], text)
    return re.sub(r"hf_\w+", "hf_***", _TOKEN.sub("***", text))


def holds_secret(text: str) -> bool:
    """Whether a text has a token in it, or an address that is not public."""
    return bool(_TOKEN.search(text)) or any(public(m[0]) != m[0] for m in _URL.finditer(text))


def _without_secrets(query: str) -> str:
    pairs = [(p, unquote_plus(p.partition("=")[0]).lower()) for p in re.split("[&;]", query)]
    names = {name for _, name in pairs}
    gone = set().union(*(also for name, also in _COMPANIONS.items() if name in names))
    kept = [p for p, name in pairs if not (name in gone or _is_secret(name) or _TOKEN.search(p))]
    return query if len(kept) == len(pairs) else "&".join(kept)


def _is_secret(name: str) -> bool:
    words = re.split(r"[^a-z0-9]+", name)
    return (
        name not in _HARMLESS
        and (name.startswith(_SIGNED) or "".join(words) in _WORDS or not _WORDS.isdisjoint(words))
    ) or any(w in name for w in ("token", "secret", "passw", "signature", "credential", "apikey"))
