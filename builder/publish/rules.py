"""May this release be published, and by this user? Nothing here writes anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from builder import hub, schema
from builder.check.verify import verify
from builder.errors import BuilderError, NetworkError
from builder.release.manifest import Manifest, read_manifest
from builder.release.parquet import open_parquet
from builder.release.versions import parse_version
from builder.secrets import holds_secret

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check_release(root: Path) -> Manifest:
    """The manifest of a release that may be published.

    Raises:
        BuilderError: seeded weights, problems, or it does not pass `verify`.
    """
    manifest = read_manifest(root)
    again = f"`builder verify {root}` says more."
    if manifest["weights"] != "checkpoints":
        raise BuilderError(
            f"{root} is made of {manifest['weights']} weights; only releases built from "
            "checkpoints are published.",
            hint="`builder build` without --weights makes one.",
        )
    if manifest["problems"]:
        raise BuilderError(f"{root} has a known problem: {manifest['problems'][0]}", hint=again)
    parse_version(manifest["version"])
    if faults := verify(root):
        raise BuilderError(f"{root} does not pass verification: {faults[0]}", hint=again)
    return manifest


def check_token(client: HfApi, repo_id: str, write: bool = True) -> str:
    """The user's name, if the token may write to the repository as far as can be seen.

    Raises:
        NetworkError: no token, a wrong one, a read-only one, or another namespace's.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise NetworkError(
            "no Hub token found.",
            hint="set HF_TOKEN to a token with write access, or run `hf auth login`.",
        )
    with hub.network_errors("check the token"):
        me = client.whoami()
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise NetworkError(
            "the token is read-only.", hint="make one with write access and set HF_TOKEN to it."
        )
    name = str(me["name"])
    spaces = [name, *(org["name"] for org in me.get("orgs", []))]
    if write and repo_id.split("/")[0] not in spaces:
        raise NetworkError(
            f"{name} may not write to {repo_id}.", hint=f"namespaces of this token: {spaces}"
        )
    return name


def check_private(root: Path, files: Mapping[str, Path | bytes]) -> None:
    """Refuse a release that names folders of this machine, or holds a token or a signed address."""
    from huggingface_hub import get_token

    home = str(Path.home()).rstrip("/")
    secrets = [get_token(), f"{root.resolve()}", f"{home}/" if home else None, "file://"]
    pattern = "|".join(re.escape(s) for s in secrets if s) + r"|^(?:/|~/|[A-Z]:\\)"
    for path, source in files.items():
        for text in _texts(path, source):
            if re.search(pattern, text) or holds_secret(text):
                raise BuilderError(
                    f"{path} holds a path of this machine or a secret; it is not published.",
                    hint="use a public address in the cohort's `checkpoint`, and build again.",
                )


def _texts(path: str, source: Path | bytes) -> Iterator[str]:
    """The texts in a file that a person could have put something private into."""
    if isinstance(source, bytes) or source.suffix != ".parquet":
        data = source if isinstance(source, bytes) else source.read_bytes()
        if path == schema.MANIFEST:
            yield from strings(json.loads(data))
        else:  # prose and SQL: a line is a text, but none of them an address
            yield from (f" {line}" for line in data.decode().splitlines())
        return
    with open_parquet(source) as table:
        meta = table.schema_arrow.metadata or {}
        yield from (v.decode(errors="replace") for v in meta.values())
        if schema.filters_key(path):
            return  # its texts are model and data set, which the checks of `verify` cover
        names = [
            f.name
            for f in table.schema_arrow
            if pa.types.is_string(f.type) or pa.types.is_dictionary(f.type)
        ]
        for column in table.read(columns=names).columns:
            yield from (v for v in column.unique().to_pylist() if v)


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
