"""What takes Python's place in the tests does what Python does, for a program that can tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warm_python import python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("AP_COLD_PYTHON" in os.environ, reason="AP_COLD_PYTHON asks for none of it"),
]

ROOT = Path(__file__).parents[1]
TELL = """
import json, os, sys
print(json.dumps([sys.argv, sys.path, sys.prefix, __name__, globals().get("__file__")]))
print(os.getcwd(), os.environ["WORD"])
print("two", file=sys.stderr)
"""


def run(interpreter: str, *words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([interpreter, *map(str, words)], capture_output=True, text=True, check=False, **options)


def both(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """What the true one says, which is what the other says."""
    expected, found = (run(interpreter, *words, **options) for interpreter in (sys.executable, python()))
    told, true = ((done.stdout, _without_source(done.stderr), done.returncode) for done in (found, expected))
    assert told == true
    return found


def _without_source(said: str) -> str:
    """Without the lines of source in a traceback, of which Python 3.13 has those of -c, too."""
    return "".join(line for line in said.splitlines(keepends=True) if not line.startswith("    "))


def test_a_program_gets_its_arguments_its_folder_and_its_environment(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(TELL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["one", str(tmp_path)]), "WORD": "found"}
    for words in (["told.py", "a", "--b"], ["-m", "told", "a"], ["-c", TELL, "a"]):
        both(*words, cwd=tmp_path, env=environment)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('words')",
        "raise ValueError('words')",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'at the end')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('from a thread'))).start()",
        "print(input())",
        "import sys; print(sys.stdin.read().upper()); from reproduction import corpus; print(corpus.__file__)",
        "import torch; print(torch.get_num_threads())",
        "import torch.no_such_module",
    ],
)
def test_a_program_ends_as_it_would(code: str) -> None:
    both("-c", code, input="words\n", env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"})


def test_nothing_of_this_repository_is_there_before_a_program_imports_it() -> None:
    run(python(), "transformer-xl/train.py", "--help", cwd=ROOT)
    code = "import sys; print(*(vars(module).get('__file__') for module in list(sys.modules.values())), sep='\\n')"
    files = run(python(), "-c", code).stdout.splitlines()
    assert not [file for file in files if file.startswith(f"{ROOT}/") and "site-packages" not in file]
    assert any("site-packages/torch/" in file for file in files)


def test_a_process_that_a_program_starts_is_of_the_same_kind() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; print(sys.executable)'])"
    assert run(python(), "-c", code).stdout == f"{python()}\n"


@pytest.mark.parametrize("leads", [False, True])
def test_signals_reach_the_program(leads: bool, tmp_path: Path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(7))\n"
        "pathlib.Path('ready').touch()\ntime.sleep(60)"
    )
    process = subprocess.Popen([python(), "-c", code], cwd=tmp_path, start_new_session=leads)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    (os.killpg if leads else os.kill)(process.pid, signal.SIGTERM)
    assert process.wait(30) == 7


def test_a_program_does_not_outlive_who_stands_for_it(tmp_path: Path) -> None:
    code = "import os, pathlib, time\npathlib.Path('part').write_text(str(os.getpid()))\n"
    code += "os.rename('part', 'id'); time.sleep(60)"
    process = subprocess.Popen([python(), "-c", code], cwd=tmp_path)
    while not (tmp_path / "id").exists():
        time.sleep(0.01)
    process.kill()
    process.wait()
    forked, end = int((tmp_path / "id").read_text()), time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.kill(forked, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("it goes on")


def test_what_imports_have_read_needs_an_interpreter_of_its_own() -> None:
    code = "import json, sys; print(json.dumps(sys.executable))"
    found = run(python(), "-c", code, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert json.loads(found.stdout) == sys.executable
    assert run(python(), "-I", "-c", code).stdout == found.stdout
