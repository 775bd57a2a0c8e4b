"""Starts one script again and again without importing its packages anew: python fork_server.py SCRIPT [MODULE ...]

It answers one line of JSON for each line of JSON that it reads. {"argv", "log", "file_limit"} starts the script as the
leader of a process group of its own and gives its "pid"; file_limit is the most bytes that a file may have, or null.
{"wait": pid} gives the "status" of one that has ended, negative for a signal.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import sys
import traceback
from pathlib import Path


def start(script: str, request: dict) -> int:
    """Fork, and run the script in the child, which does not return."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, own in enumerate((nothing, log, log)):
            os.dup2(own, number)
        if request["file_limit"] is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        sys.argv = [script, *request["argv"]]
        runpy.run_path(script, run_name="__main__")
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:  # as a Python of its own ends: what it was is shown, and the status is 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve(script: str, modules: list[str]) -> None:
    """Import what the script imports, then answer until there is nothing more to read."""
    sys.path[0] = str(Path(script).parent)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed while packages are imported is no answer
    runpy.run_path(script, run_name="preloaded")
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            answer = {"pid": start(script, request)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
