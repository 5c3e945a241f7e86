"""A judge's endpoint over real HTTP, by rules a test can foresee."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from orchestrator.judge_config import JudgeSettings


class Endpoint:
    """An OpenAI-compatible server on loopback; `verdict` makes of a prompt a status and a reply."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.verdict: Callable[[str], tuple[int, str]] = lambda prompt: (
            200,
            "Yes." if "Ada Thorne" in prompt else "no",
        )
        self.stall = threading.Event()
        self.stalls = False
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.prompts.append(body["messages"][0]["content"])
                if endpoint.stalls:
                    endpoint.stall.wait(10)
                status, text = endpoint.verdict(endpoint.prompts[-1])
                choice = {"message": {"content": text}, "finish_reason": "stop"}
                sent = json.dumps({"choices": [choice]}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(sent)))
                self.end_headers()
                # Who met a deadline has hung up.
                with contextlib.suppress(BrokenPipeError):
                    self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self.stall.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def settings(endpoint: Endpoint, **more: Any) -> JudgeSettings:
    values = {"base_url": endpoint.url, "model": "judge", "attempts": 2, "backoff_s": 0.01, "timeout_s": 5, **more}
    return JudgeSettings(**values)
