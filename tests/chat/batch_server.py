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

"""A scripted server with files and batches: it counts what it answers, and fails or kills when it is told to."""

import email
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.chat.chat_server import PRICES, said
from trl_distill.chat import read_ledger


CUT = "the connection is cut"
# What makes a store one of a release without batches, but for its version
WITHOUT_BATCHES = "DROP INDEX in_batches; DROP TABLE batches; ALTER TABLE calls DROP COLUMN batch;"


def answer(body):
    """The answer of the server without a script: an echo of the last message."""
    return said(f"echo {body['messages'][-1]['content']}")


def texts(answers):
    return [answer.text for answer in answers]


def echoes(count):
    return [f"echo question {i}" for i in range(count)]


class BatchServer:
    """
    Serves batches on loopback.

    `reply(body)` gives the JSON of an answer, or `(status, body)`. `polls` is how often a batch is seen in progress,
    and `end(batch)` may give another status than `completed` and how many requests it answers first.
    `fault(event, number)` is asked at the n-th `upload`, `create`, `made` (the batch is there, its id not sent yet),
    `list`, `poll` and `download`: it may give `(status, body)` or `CUT`, and kill somebody.
    """

    def __init__(self):
        self.reply, self.fault, self.end = answer, lambda event, number: None, lambda batch: ("completed", None)
        self.polls, self.most_requests, self.page = 1, 50_000, 100
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.events, self.tokens = Counter(), Counter()
        self.answered = Counter()  # by custom_id, how often it was answered and so billed
        self.requests: list[dict] = []  # of all lines that were worked on
        self.lines = 0  # of all batches that were not refused
        self.headers = []
        self.path = None  # of the store that is to hold the same counts
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                outer.handle(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

            def do_GET(self):
                outer.handle(self, b"")

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args):  # who was killed no longer reads
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()

    def handle(self, handler, content):
        with self._lock:
            self.headers.append(handler.headers)
            result = self._route(handler, content)
        status, body = result if isinstance(result, tuple) else (200, result)
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        if result == CUT:
            status, body = 200, b'{"half'
            handler.close_connection = True
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(100_000 if result == CUT else len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _fails(self, event):
        self.events[event] += 1
        return self.fault(event, self.events[event])

    def _route(self, handler, content):
        url = urlsplit(handler.path)
        parts = url.path.removeprefix("/v1/").split("/")
        if parts == ["files"]:
            return self._fails("upload") or self._upload(handler.headers["Content-Type"], content)
        if parts == ["batches"] and handler.command == "POST":
            return self._fails("create") or self._create(json.loads(content))
        if parts == ["batches"]:
            return self._fails("list") or self._list(parse_qs(url.query))
        if parts[0] == "batches" and parts[1] in self.batches:
            return self._fails("poll") or self._poll(self.batches[parts[1]])
        if parts[0] == "files" and parts[1] in self.files:
            return self._fails("download") or self.files[parts[1]]
        return 404, {"error": {"message": "not found"}}

    def _new_file(self, content):
        self.files[f"file-{len(self.files)}"] = content
        return f"file-{len(self.files) - 1}"

    def _upload(self, content_type, content):
        form = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + content)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
        assert parts["purpose"].get_payload().strip() == "batch"
        lines = parts["file"].get_payload(decode=True)
        return {"id": self._new_file(lines), "object": "file", "purpose": "batch", "bytes": len(lines)}

    def _create(self, body):
        id = f"batch_{len(self.batches)}"
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].split(b"\n") if line]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        assert {(line["method"], line["url"]) for line in lines} == {("POST", body["endpoint"])}
        counts = {"total": len(lines), "completed": 0, "failed": 0}
        batch = {"id": id, "object": "batch", "created_at": 1, "status": "validating", "request_counts": counts} | body
        self.batches[id] = batch | {"polls": self.polls, "lines": lines}
        return self._fails("made") or self._shown(self.batches[id])

    def _shown(self, batch):
        return {name: value for name, value in batch.items() if name not in ("polls", "lines")}

    def _list(self, query):
        newest = list(self.batches.values())[::-1]
        after = query.get("after", [None])[0]
        start = 1 + [batch["id"] for batch in newest].index(after) if after else 0
        page = newest[start : start + self.page]
        more = start + self.page < len(newest)
        return {"object": "list", "data": [self._shown(batch) for batch in page], "has_more": more}

    def _poll(self, batch):
        if batch["status"] not in ("completed", "failed", "expired", "cancelled"):
            batch["polls"] -= 1
            batch["status"] = "in_progress"
            if len(batch["lines"]) > self.most_requests:
                errors = [{"code": "too_many", "message": f"more than {self.most_requests} requests", "line": None}]
                batch |= {"status": "failed", "errors": {"object": "list", "data": errors}}
            elif batch["polls"] < 0:
                self._work(batch)
        return self._shown(batch)

    def _work(self, batch):
        batch["status"], count = self.end(batch)
        self.lines += len(batch["lines"])
        output, errors = [], []
        for number, line in enumerate(batch["lines"]):
            row = {"id": f"request_{number}", "custom_id": line["custom_id"], "response": None, "error": None}
            if count is not None and number >= count:
                error = {"code": f"batch_{batch['status']}", "message": "This request could not be executed."}
                errors.append(row | {"error": error})
                continue
            self.requests.append(line["body"])
            said = self.reply(line["body"])
            status, body = said if isinstance(said, tuple) else (200, said)
            row["response"] = {"status_code": status, "request_id": "r", "body": body}
            (output if status == 200 else errors).append(row)
            if status == 200:
                self.answered[line["custom_id"]] += 1
                self.tokens.update(body.get("usage") or {})
        batch["request_counts"] |= {"completed": len(output), "failed": len(errors)}
        for name, rows in (("output_file_id", output[::-1]), ("error_file_id", errors)):  # in no order
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
            batch[name] = self._new_file(content) if rows else None

    def check(self, path):
        """The ledger of a store is what this server has counted, and it has answered nothing twice."""
        rows = read_ledger(path)
        assert sum(row.calls + row.retries for row in rows) == self.lines
        bill = [self.tokens["prompt_tokens"], self.tokens["completion_tokens"]]
        assert [sum(row.prompt_tokens for row in rows), sum(row.completion_tokens for row in rows)] == bill
        cost = (PRICES["prompt_price"] * bill[0] + PRICES["completion_price"] * bill[1]) / 1e6
        if all(row.cost_usd is not None for row in rows):  # the command `sample` has no prices
            assert sum(row.cost_usd for row in rows) == pytest.approx(cost)
        assert set(self.answered.values()) <= {1}
