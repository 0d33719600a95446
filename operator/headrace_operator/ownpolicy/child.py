"""The program that runs one own policy: reads asks from its input, one a line, and writes what became of each.

Started by `process.py` alone. Limits are set before the policy's module is imported, and cannot be raised again. What
the policy prints goes nowhere. Where an answer takes too long the process ends itself, should nobody be left to end it.
It leaves when its input ends.
"""

import json
import os
import resource
import signal
import sys
import traceback
from typing import Any, TextIO

from headrace_operator.ownpolicy.loading import Function, NotLoadedError, load
from headrace_operator.plan.scaling import Answer
from headrace_operator.plan.scaling.wire import Json, WireError, answer_to_json, ask_from_json

FILES = 64
NICE = 10
SAID = 500
"""Characters of an exception's text."""


def main(name: str, start_seconds: float, seconds: float, memory: int, folder: str) -> None:
    """Load the policy within the one time, and answer each ask within the other. `memory`: bytes. `folder`: where
    Python looks for it last; may be empty."""
    asks, answers = _streams()
    _fence(memory)
    if folder:
        # Last: a file in it cannot take the place of a module of ours or of Python's.
        sys.path.append(folder)
    signal.setitimer(signal.ITIMER_REAL, start_seconds)
    try:
        policy = load(name)
    except NotLoadedError as error:
        _tell(answers, {"not_loaded": str(error)[:SAID]})
        return
    _tell(answers, {"ready": True})
    signal.setitimer(signal.ITIMER_REAL, 0)
    for line in asks:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        asked = json.loads(line)
        said = _answer(policy, asked["ask"])
        _tell(answers, {"number": asked["number"], **said})
        signal.setitimer(signal.ITIMER_REAL, 0)
        if said.get("spent"):
            return


def _streams() -> tuple[TextIO, TextIO]:
    """Input and output for ourselves, neither in reach of the policy's `print` and `input`, nor of its children."""
    asks, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    return asks, answers


def _fence(memory: int) -> None:
    """What can be taken from a process that keeps its user. No file can be written: a full /tmp would end the operator
    with its pod. No process or thread can be started, by any user but root: nobody would be left to end them."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))


def _answer(policy: Function, plain: object) -> Json:
    ask = ask_from_json(plain)
    try:
        answer: Any = policy(ask)
        if not isinstance(answer, Answer):
            return {"nonsense": f"{type(answer).__name__} in place of an Answer"}
        return {"answer": answer_to_json(answer)}
    except WireError as error:
        return {"nonsense": str(error)[:SAID]}
    except MemoryError:
        # What it holds is not given back while the process lives.
        return {"raised": "MemoryError", "said": "", "spent": True}
    except BaseException as error:
        # Even what would end the process: the operator is told, and the process lives on.
        return {"raised": f"{type(error).__name__}{_where(error)}", "said": str(error)[:SAID]}


def _where(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[1:]
    return f" in {os.path.basename(frames[-1].filename)}, line {frames[-1].lineno}" if frames else ""  # noqa: PTH119


def _tell(answers: TextIO, said: Json) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
