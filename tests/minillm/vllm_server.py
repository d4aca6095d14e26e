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

"""A server on loopback that scores prompts with a model, in the format of vLLM 0.32."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch


class VLLMServer:
    """
    What `vllm serve` says of prompts. `reply(body)` may answer in its place, with a status and a text or JSON; without
    a status the connection is cut.

    Args:
        model ([`~transformers.PreTrainedModel`]), tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The teacher.
        max_model_len (`int`, *optional*, defaults to `512`):
            Its context.
    """

    def __init__(self, model, tokenizer, max_model_len: int = 512):
        self.model, self.tokenizer, self.max_model_len = model, tokenizer, max_model_len
        self.reply, self.requests = None, []
        self.most_in_flight = self._in_flight = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                card = {"id": "teacher", "object": "model", "max_model_len": outer.max_model_len}
                found = self.path == "/v1/models"
                self.answer(*(200, {"object": "list", "data": [card]}) if found else (404, {"detail": "Not Found"}))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.requests.append(body)
                    outer._in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer._in_flight)
                replied = outer.reply(body) if outer.reply else None
                status, content = replied or outer.complete(body)
                with outer._lock:
                    outer._in_flight -= 1
                self.answer(status, content)

            def answer(self, status, content):
                if status is None:
                    self.close_connection = True
                    return
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:  # the client has given up
                    self.close_connection = True

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def complete(self, body):
        special = body.get("add_special_tokens", True)
        rows = [
            self.tokenizer(prompt, add_special_tokens=special)["input_ids"] if isinstance(prompt, str) else prompt
            for prompt in body["prompt"]
        ]
        for ids in rows:
            if max(ids) >= self.model.config.vocab_size:
                return _bad_request(f"Token id {max(ids)} is out of vocabulary")
            if len(ids) + body["max_tokens"] > self.max_model_len:
                return _bad_request(f"This model's maximum context length is {self.max_model_len} tokens.")
        choices = [{"index": i, "text": "", "prompt_logprobs": self.score(ids)} for i, ids in enumerate(rows)]
        return 200, {"object": "text_completion", "model": body["model"], "choices": choices}

    @torch.no_grad()
    def score(self, ids):
        """A list with `None` and, of each further token, its log-probability by its id, whatever the temperature."""
        logps = self.model(torch.tensor([ids]), use_cache=False).logits[0].log_softmax(dim=-1)
        scores: list[dict | None] = [None]
        for position, token in zip(logps, ids[1:], strict=False):
            logp = position[token].item()
            entry = {"logprob": -9999.0 if logp == -torch.inf else logp, "rank": 1, "decoded_token": "x"}
            scores.append({str(token): entry})
        return scores

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


def _bad_request(message):
    return 400, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}
