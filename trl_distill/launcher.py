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
`python -m trl_distill.launcher`: `accelerate launch`, which says nothing of its defaults, nor of Ctrl-C; and what else
libraries say in each run.
"""

import logging
import signal
import warnings


# How it begins, by logger. TRL and PEFT import bitsandbytes and DeepSpeed wherever they are installed, also for runs
# that use neither; what torch's launcher says of a signal, our commands say in one line.
_SAID_BY = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "DeepSpeed": "Setting accelerator to CPU",
    "torch.distributed.elastic.agent.server.api": "Received %s death signal",
    "torch.distributed.elastic.multiprocessing.api": "Sending process %s closing signal",
}
# TRL's configs set the old name by default, and its trainers ask models by it
_OLD_NAMES = r"`(is_)?gradient_checkpointing(_enable|_disable)?` is deprecated"


def _matters(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_SAID_BY[record.name])


def quiet() -> None:
    """Leave out what is said in every run and no user can do anything about, and nothing else."""
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)  # the list of all defaults
    for name in _SAID_BY:
        logging.getLogger(name).addFilter(_matters)
    warnings.filterwarnings("ignore", _OLD_NAMES, FutureWarning)


def main() -> None:
    from accelerate.commands.launch import main as launch

    quiet()
    try:
        launch()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
