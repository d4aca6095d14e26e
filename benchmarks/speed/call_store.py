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

"""
Calls per second through the call store.

A stub server in a process of its own answers at once, so all that is seen is the client, the store and HTTP on
loopback. The arms take turns: the same calls with and without the store, 1 and 64 in flight, and a rule in Python in
place of the server, where the store is alone. After each round the store's ledger must agree with the server's count.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from benchmarks.speed.measuring import finish, in_turns, make_parser, ratio, spread
from trl_distill.chat import CallStore, ChatRequest, EndpointChatModel, FunctionChatModel


ROOT = Path(__file__).parents[2]
BARE, STORED = "without the store", "through the store"


async def serve(answer_chars: int) -> None:
    """Answer every POST with the same completion; a GET says how many there were. Prints its port."""
    message = {"role": "assistant", "content": "x" * answer_chars}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 100, "completion_tokens": 100, "total_tokens": 200}
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": choices}
    completion = json.dumps(completion | {"usage": usage})
    count = 0

    async def handle(reader, writer):
        nonlocal count
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if head.startswith("post"):
                    await reader.readexactly(int(head.partition("content-length:")[2].split("\r\n")[0]))
                    count, body = count + 1, completion
                else:
                    body = str(count)
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(f"{head}{body}".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def make_requests(count: int, prompt_chars: int) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": f"{i} ".ljust(prompt_chars, "x")}]) for i in range(count)]


def measure(args, model, requests, count_of_server, folder: str) -> dict[str, dict]:
    """Wall and processor seconds of all requests with and without the store, in turns."""
    processor: dict[str, list[float]] = {BARE: [], STORED: []}

    def timed(arm, repeat):
        served, calls = count_of_server(), len(requests)
        start, processor_start = time.perf_counter(), time.process_time()
        if arm == BARE:
            answers = model.complete(requests)
        else:
            with CallStore(Path(folder) / f"{model.name}-{model.concurrency}-{repeat}.sqlite") as store:
                answers = store.model(model, role="benchmark").complete(requests)
                calls = store.ledger()[0].calls
        seconds = time.perf_counter() - start
        if repeat >= 0:
            processor[arm].append(time.process_time() - processor_start)
        assert all(hasattr(answer, "text") for answer in answers) and count_of_server() - served in (0, calls)
        return seconds

    wall = in_turns([BARE, STORED], timed, args.repeats)
    median = {arm: statistics.median(seconds) for arm, seconds in processor.items()}
    return {
        "model": model.name,
        "in_flight": model.concurrency,
        "calls": len(requests),
        "calls_per_second": {arm: spread([len(requests) / s for s in seconds]) for arm, seconds in wall.items()},
        "processor_ms_per_call": {
            arm: spread([1000 * s / len(requests) for s in processor[arm]]) for arm in processor
        },
        "time_ratio": ratio(wall[STORED], wall[BARE]),
        "store_ms_per_call": 1000 * (median[STORED] - median[BARE]) / len(requests),
    }


def main(argv: list[str] | None = None) -> dict:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--calls", type=int, default=2000, help="calls of an arm in a round")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--prompt-chars", type=int, default=2000)
    parser.add_argument("--answer-chars", type=int, default=1000)
    parser.add_argument("--serve", action="store_true", help="be the stub server")
    args = parser.parse_args(argv)
    if args.serve:
        asyncio.run(serve(args.answer_chars))

    requests, rows = make_requests(args.calls, args.prompt_chars), []
    command = [sys.executable, "-m", __spec__.name, "--serve", "--answer-chars", str(args.answer_chars)]
    stub = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = f"http://127.0.0.1:{int(stub.stdout.readline())}"

        def count_of_server() -> int:
            with urllib.request.urlopen(address) as response:
                return int(response.read())

        with tempfile.TemporaryDirectory() as folder:
            rule = FunctionChatModel(lambda request: "x" * args.answer_chars, "rule")
            endpoints = [EndpointChatModel("stub", f"{address}/v1", concurrency=n) for n in args.in_flight]
            for model in (rule, *endpoints):
                with model:
                    rows.append(measure(args, model, requests, count_of_server, folder))
                print(json.dumps(rows[-1]), flush=True)
    finally:
        stub.terminate()
        stub.wait()
    clock = "wall time; processor time of the client where it says so"
    return finish("call_store", args, clock, hidden="serve", rows=rows)


if __name__ == "__main__":
    main()
