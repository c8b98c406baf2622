"""What a server says of a file's version: does the rest of it fit the part that is here?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requests import Response


def validators_file(path: Path) -> Path:
    """FILE.part.from, beside FILE.part."""
    return path.with_name(path.name + ".part.from")


@dataclass(frozen=True)
class Validators:
    """What tells one version of a file from another; empty or None where the server does not."""

    etag: str = ""
    modified: str = ""
    total: int | None = None

    @classmethod
    def of(cls, response: Response, total: int | None) -> Validators:
        headers = response.headers
        return cls(headers.get("ETag", ""), headers.get("Last-Modified", ""), total)

    @property
    def if_range(self) -> str:
        """The validator to ask with; a weak tag does not promise equal bytes."""
        return self.etag if self.etag.startswith('"') else self.modified

    def agree(self, other: Validators) -> bool:
        """Whether an answer is of the version whose beginning is here.

        A server that ignores If-Range sends the rest of whatever it has now. So something must
        be there to compare, and nothing may differ.
        """
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        compared = [a == b for a, b in pairs if a and b]
        return all(compared) and any(a and a == b for a, b in pairs[:2])

    @classmethod
    def read(cls, path: Path) -> Validators:
        """Those of the part of a file that is here; none where nothing readable is."""
        try:
            return cls(**json.loads(validators_file(path).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        validators_file(path).write_text(json.dumps(asdict(self)))
