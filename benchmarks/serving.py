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

"""A real server on this machine: `transformers serve`."""

import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_server() -> None:
    """Ends a script that needs the server, before it has worked for minutes."""
    if importlib.util.find_spec("fastapi") is None:
        raise SystemExit("`transformers serve` needs fastapi and uvicorn: pip install trl-distill[serving].")


@contextmanager
def served(folder: str, log: Path, port: int | None = None) -> Iterator[str]:
    """
    Address at which `transformers serve` serves the model in a folder, on the CPU.

    Args:
        folder (`str`):
            Folder of the model. It is also the model's name at the server.
        log (`Path`):
            File for what the server prints.
        port (`int`, *optional*):
            Defaults to a free one.

    Raises:
        `RuntimeError`: If the server stops or does not answer within two minutes, with what it printed.
    """
    if port is None:
        with socket.socket() as place:
            place.bind(("127.0.0.1", 0))
            port = place.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--device", "cpu"]
    with open(log, "w") as file:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health").close()
                break
            except urllib.error.URLError:
                if process.poll() is not None:
                    break
                time.sleep(0.5)
        else:
            process.kill()
        if process.poll() is not None:
            raise RuntimeError(f"The server did not start:\n{log.read_text()}")
        yield f"http://localhost:{port}/v1"
    finally:
        process.terminate()
        process.wait()
