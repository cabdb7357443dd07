"""Whether this interpreter and this machine can run CosyServe; `make` runs this file before it installs anything.

It is read by interpreters as old as Python 2.7, which must reach the message: standard library only, types in comments,
no f-strings.
"""

import os
import platform
import sys

PYTHONS = ((3, 11), (3, 13))
"""First and last minor version that the tests run on; Triton's Python stubs exist for these."""

GLIBC = (2, 35)
"""Oldest C library of the tritonserver that `cosyserve.tritonserver` fetches (its wheel: manylinux_2_35)."""

MACHINES = ("x86_64", "aarch64")
"""Processors that it is built for."""


def python_problem():
    # type: () -> str
    """Why this interpreter cannot run CosyServe or an empty string when it can."""
    found = sys.version_info[:2]
    first, last = (".".join(map(str, version)) for version in PYTHONS)
    wanted = "CosyServe needs CPython %s to %s" % (first, last)
    if not PYTHONS[0] <= found <= PYTHONS[1]:
        return "%s, this is Python %s (%s); name another with `make PYTHON=python%s`" % (
            wanted,
            ".".join(map(str, sys.version_info[:3])),
            sys.executable,
            last,
        )
    if platform.python_implementation() != "CPython":
        return "%s, this is %s" % (wanted, platform.python_implementation())
    if not getattr(sys, "_is_gil_enabled", lambda: True)() or "t" in getattr(sys, "abiflags", ""):
        return "%s with the global interpreter lock, this is a free-threaded build" % wanted
    if sys.maxsize < 2**32:
        return "%s of 64 bits, this is one of 32" % wanted
    return ""


def machine_problem():
    # type: () -> str
    """Why the tritonserver that is fetched cannot run on this machine or an empty string when it can.

    A tritonserver on PATH is the way out in each case but the first.
    """
    if not sys.platform.startswith("linux"):
        return "the server runs on Linux, this is %s; run it in a container" % sys.platform
    if platform.machine() not in MACHINES:
        return "no tritonserver can be fetched for %s, only for %s; put one on PATH" % (
            platform.machine(),
            " and ".join(MACHINES),
        )
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        return "the tritonserver that is fetched needs glibc %s, this machine has %s; use NVIDIA's container" % (
            ".".join(map(str, GLIBC)),
            ("%s %s" % (name, version)).strip() or "another C library",
        )
    return ""


def venv_problem():
    # type: () -> str
    """Why `python -m venv` would fail or an empty string: Debian and Ubuntu ship it as a package of its own."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return "Python's venv module is missing: install it, on Debian and Ubuntu with `apt-get install python3-venv`"
    return ""


def main():
    # type: () -> None
    """Exit with the first problem in one line on stderr (1), or silently (0)."""
    found = python_problem() or venv_problem()
    if not found and not any(os.path.isfile(os.path.join(p, "tritonserver")) for p in os.get_exec_path()):
        found = machine_problem()
    if found:
        sys.exit("error: " + found)


if __name__ == "__main__":
    main()
