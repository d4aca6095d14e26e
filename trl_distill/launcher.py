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

"""`python -m trl_distill.launcher`: `accelerate launch`, which says nothing of its defaults, nor of Ctrl-C."""

import logging
import signal


def quiet() -> None:
    """Silence the list of all defaults with which accelerate starts."""
    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)


def main() -> None:
    from accelerate.commands.launch import main as launch

    quiet()
    try:
        launch()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
