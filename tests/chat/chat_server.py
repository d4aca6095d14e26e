# Copyright 2026 The trl_distill authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""A scripted server of the API for chats and for texts, and a rule: both count what they are asked."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trl_distill.chat import FunctionChatModel, Prices, read_ledger


class Rule(FunctionChatModel):
    """A rule that counts its calls, and says how often it was asked the same."""

    def __init__(self, name="rule", prices=(0.0, 0.0), **settings):
        super().__init__(self.reply, name, **settings)
        self.prices, self.asked = Prices(*prices), Counter()

    def reply(self, request):
        prompt = request.texts[-1]
        self.asked[prompt] += 1
        return f"{self.name} {prompt} #{self.asked[prompt]}"


def completion_body(text, finish_reason="stop", prompt_tokens=7, completion_tokens=3, **fields):
    """The body of an answer, as a server sends it."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": 0},
    } | fields


def text_body(text, finish_reason="stop", logps=None, chat=False):
    """The body of an answer to a plain text, or to a chat, with log-probabilities of tokens."""
    body = completion_body(text, finish_reason)
    if chat:
        logprobs = logps and {"content": [{"token": "x", "logprob": logp} for logp in logps]}
    else:
        body["object"], logprobs = "text_completion", logps and {"token_logprobs": logps}
        body["choices"][0] = {"index": 0, "text": text, "finish_reason": finish_reason}
    body["choices"][0]["logprobs"] = logprobs
    return body


class ChatServer:
    """
    Serves on loopback what `reply(body, attempt, headers)` says, and echoes the last message without one.

    A reply is the JSON of an answer, or a tuple `(status, body, headers)`; `CUT` breaks the connection in the middle,
    `DRIP` and `DRIP_HEAD` send a byte of the body or of the head now and then, for ten seconds.
    """

    CUT = "the connection is cut"
    DRIP, DRIP_HEAD = "the body drips", "the head drips"

    def __init__(self, port: int = 0):
        self.reply, self.delay = None, 0.0
        self.requests: list[dict] = []  # one for each attempt, in order of arrival
        self.headers, self.paths = [], []
        self.times: list[float] = []
        self.most_in_flight = self._in_flight = 0
        self._attempts: Counter = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                try:
                    outer.handle(self, raw)
                except (BrokenPipeError, ConnectionResetError):  # the client has given up
                    self.close_connection = True

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128
            daemon_threads = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle(self, handler, raw):
        body = json.loads(raw)
        with self._lock:
            self.requests.append(body)
            self.headers.append(handler.headers)
            self.paths.append(handler.path)
            self.times.append(time.monotonic())
            attempt = self._attempts[raw] = self._attempts[raw] + 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        time.sleep(self.delay(body) if callable(self.delay) else self.delay)
        echo = completion_body(f"echo {body['messages'][-1]['content']}") if "messages" in body else None
        reply = self.reply(body, attempt, handler.headers) if self.reply else echo
        reply = echo if reply is None else reply
        with self._lock:
            self._in_flight -= 1
        status, content, headers = (200, reply, {}) if not isinstance(reply, tuple) else reply
        if content is self.CUT:
            status, content, headers = 200, json.dumps(echo), {"Content-Length": "100000"}
            handler.close_connection = True
        slow = content in (self.DRIP, self.DRIP_HEAD)
        if slow:
            content = " " * 500 + json.dumps(echo) if content is self.DRIP else echo
        if slow and not isinstance(content, str):
            self._drip(handler, b"HTTP/1.1 200 OK\r\nX-Wait: " + b"x" * 500 + b"\r\n")
            return
        content = content if isinstance(content, str) else json.dumps(content)
        handler.send_response(status)
        all_headers = {"Content-Type": "application/json", "Content-Length": str(len(content.encode()))} | headers
        for name, value in all_headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if slow:
            self._drip(handler, content.encode())
        else:
            handler.wfile.write(content.encode())

    @staticmethod
    def _drip(handler, content):
        for byte in content[:500]:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.02)
        handler.wfile.write(content[500:])

    def prompts(self):
        """The last message of each request, in order of arrival."""
        return [body["messages"][-1]["content"] for body in self.requests]

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


PRICES = dict(prompt_price=3.0, completion_price=15.0)
USAGE = {"prompt_tokens": 11, "completion_tokens": 5}


class Meter:
    """A server with a script, which counts the tokens that it bills."""

    def __init__(self, server):
        self.server, self.tokens, self._lock = server, Counter(), threading.Lock()

    def serve(self, reply):
        def counted(body, attempt, headers):
            said = reply(body, attempt, headers)
            content = said[1] if isinstance(said, tuple) else said
            usage = content.get("usage") if isinstance(content, dict) else None
            with self._lock:
                self.tokens.update(usage or {})
            return said

        self.server.reply = counted

    def check(self, path):
        """The ledger of a store is the server's count."""
        rows = read_ledger(path)
        assert sum(row.calls + row.retries for row in rows) == len(self.server.requests)
        bill = [self.tokens["prompt_tokens"], self.tokens["completion_tokens"]]
        assert [sum(row.prompt_tokens for row in rows), sum(row.completion_tokens for row in rows)] == bill
        cost = (PRICES["prompt_price"] * bill[0] + PRICES["completion_price"] * bill[1]) / 1e6
        assert sum(row.cost_usd for row in rows) == pytest.approx(cost)


def said(content, reason="stop", **fields):
    """An answer that bills `USAGE`. More fields go into the message."""
    body = completion_body(content, reason) | {"usage": dict(USAGE)}
    body["choices"][0]["message"] |= fields
    return body


def refuses(*names, status=400, body=None):
    """A server that refuses a request with one of these fields, and says so in its own way."""

    def reply(request, attempt, headers):
        for name in names:
            if name in request:
                text = {"error": {"message": f"Unsupported parameter: '{name}' is not supported with this model."}}
                return status, body(name) if body else text, {}
        return said("fine")

    return reply
