"""A forked process becomes a program: its arguments, folder, environment and streams, its main module and its end."""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import os
import random
import runpy
import signal
import sys
import threading
import types


def run(request: dict, fds: list[int], executable: str, path: list[str]) -> None:
    """Run a program as Python would; never returns.

    Parameters
    ----------
    request : dict
        What the client says of itself.
    fds : list of int
        Its file descriptors, in the order of ``request["fds"]``, which are their numbers.
    executable : str
        What ``sys.executable`` is: processes that the program starts are forked too.
    path : list of str
        ``sys.path`` without the program's folder and PYTHONPATH.
    """
    argv = request["argv"]
    status = 1
    try:
        _streams(fds, request["fds"])
        os.chdir(request["cwd"])
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["environment"])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
            as_new = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if number in request["ignored"] else as_new)
        sys.executable = executable
        del sys.modules["program"], sys.modules["imports"]
        folder = os.path.dirname(os.path.abspath(argv[0])) if argv[0] not in ("-c", "-m") else os.getcwd()
        paths = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        sys.path[:] = ["" if argv[0] == "-c" else folder, *paths, *path]
        importlib.invalidate_caches()
        gc.enable()
        _as_if_imported_now()
        status = _main(argv)
    except BaseException as error:  # before the program began
        _show(error)
    finally:
        try:
            threading._shutdown()
            atexit._run_exitfuncs()
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
        finally:
            if status < 0:
                signal.signal(-status, signal.SIG_DFL)
                os.kill(os.getpid(), -status)
            os._exit(status)


def _streams(fds: list[int], numbers: list[int]) -> None:
    # Out of the way first: one's number may be that of another.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, max(numbers) + 1) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    # Python's own are buffered by lines on a terminal, which these may be.
    sys.stdout.reconfigure(line_buffering=os.isatty(1))


def _as_if_imported_now() -> None:
    """What packages draw or read when they are imported."""
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count()))


def _main(argv: list[str]) -> int:
    """Run the program; its exit status, negative for the signal that ends it."""
    main = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    if "__mp_main__" in sys.modules:  # another name of it, once multiprocessing is imported
        sys.modules["__mp_main__"] = main
    try:
        if argv[0] == "-m":
            sys.argv = ["-m", *argv[2:]]
            runpy._run_module_as_main(argv[1])
        elif argv[0] == "-c":
            sys.argv = ["-c", *argv[2:]]
            exec(compile(argv[1], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = list(argv)
            main.__file__ = os.path.abspath(argv[0])
            with open(argv[0], "rb") as file:
                exec(compile(file.read(), main.__file__, "exec"), main.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        _show(error)
        return -signal.SIGINT
    except BaseException as error:
        _show(error)
        return 1
    return 0


def _show(error: BaseException) -> None:
    own = error.__traceback__.tb_next  # without this module
    sys.excepthook(type(error), error.with_traceback(own), own)
