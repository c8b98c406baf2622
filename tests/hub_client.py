"""A second process with real Hub clients, pointed at a loopback hub.

huggingface_hub and datasets read HF_ENDPOINT and the like when they are imported, so the tests
run them in a process of their own, started once, that executes the source it is sent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_LOOP = r"""
import contextlib, io, json, sys, traceback
shared = {}
for line in sys.stdin:
    order = json.loads(line)
    said = io.StringIO()
    scope = {"shared": shared, "result": None, **order["given"]}
    reply = {}
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            exec(compile(order["source"], order["name"], "exec"), scope)
            reply["result"] = scope["result"]
        except BaseException as e:
            reply["error"] = {
                "kind": type(e).__name__,
                "message": str(e),
                "hint": getattr(e, "hint", ""),
                "exit_code": getattr(e, "exit_code", None),
                "trace": traceback.format_exc(),
            }
    reply["said"] = said.getvalue()
    print(json.dumps(reply), file=sys.__stdout__, flush=True)
"""


class ClientError(Exception):
    """The source raised. `kind`, `exit_code`, `hint` and `said` (its output) tell how."""

    def __init__(self, error: dict[str, Any], said: str) -> None:
        super().__init__(error["message"])
        self.kind: str = error["kind"]
        self.exit_code: int | None = error["exit_code"]
        self.hint: str = error["hint"]
        self.trace: str = error["trace"]
        self.said = said

    def __str__(self) -> str:
        return f"{self.kind}: {self.args[0]}\n{self.trace}\n{self.said}"


class HubClient:
    """The process. `run` executes source there; what it assigns to `result` comes back."""

    def __init__(self, endpoint: str, home: Path, token: str | None = "hf_writer") -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        root = Path(__file__).resolve().parent.parent
        env |= {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(home),
            "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        if token:
            env["HF_TOKEN"] = token
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        self.said = ""

    def run(self, source: str, name: str = "<client>", **given: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        order = {"source": source, "name": name, "given": given}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the client process ended with {self.process.wait(10)}"
        reply = json.loads(line)
        self.said = reply["said"]
        if "error" in reply:
            raise ClientError(reply["error"], reply["said"])
        return reply["result"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)
