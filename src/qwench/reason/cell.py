"""Started as a process of its own: shuts itself in, then becomes the command it was given. Standard library only.

Its one argument is JSON: ``command``, ``folder`` (scratch), ``cpu`` in seconds, ``memory`` in bytes, ``confined``,
``report`` (a file descriptor). What goes wrong before the command runs is written to ``report``.

Confined means: namespaces of its own for users, network, processes, mounts and messages. There is no network but a
loopback that is down, everything outside ``folder`` is read-only, other processes cannot be seen, and when this process
dies the kernel ends all it began. Not covered: sockets that are files, and reading what the user may read.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    1 << 30,
)
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, READ_ONLY = 442, -100, 0x8000, 1
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
SCRATCH = b"size=64m"
FILE_BYTES, OPEN_FILES, PROCESSES = 64 << 20, 256, 64


class MountAttributes(ctypes.Structure):
    """The kernel's struct mount_attr."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def main() -> None:
    plan = json.loads(sys.argv[1])
    os.set_inheritable(plan["report"], False)
    try:
        if plan["confined"]:
            confine(plan)
        enter(plan)
    except OSError as error:
        os.write(plan["report"], f"{error.filename or 'it'}: {error.strerror}".encode())
        os._exit(127)


def confine(plan: dict[str, Any]) -> None:
    """New namespaces; returns in the innermost process, the others wait for it and pass its end on."""
    libc = ctypes.CDLL(None, use_errno=True)

    def must(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)

    uid, gid, folder = os.getuid(), os.getgid(), os.fsencode(plan["folder"])
    spaces = CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC
    must(libc.unshare(spaces), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text, encoding="ascii")
    must(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
    must(libc.mount(b"tmpfs", folder, b"tmpfs", MS_NOSUID | MS_NODEV, SCRATCH), "mount scratch")
    seal, open_again = MountAttributes(attr_set=READ_ONLY), MountAttributes(attr_clr=READ_ONLY)
    size = ctypes.sizeof(MountAttributes)
    must(libc.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(seal), size), "read-only /")
    must(libc.syscall(MOUNT_SETATTR, AT_FDCWD, folder, 0, ctypes.byref(open_again), size), "writable scratch")
    wait_for_child(libc)  # the first process of the new namespace, whose end is everybody's end there
    if libc.mount(b"proc", b"/proc", b"proc", 0, None):  # inside a container this may be forbidden
        must(libc.mount(b"tmpfs", b"/proc", b"tmpfs", 0, None), "hide /proc")
    wait_for_child(libc)  # the first process is deaf to signals; the command shall not be
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def wait_for_child(libc: ctypes.CDLL) -> None:
    """Fork; the child returns and dies with its parent, the parent ends as the child does."""
    child = os.fork()
    if not child:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        return
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def enter(plan: dict[str, Any]) -> None:
    """Set the limits and become the command."""
    limits = (
        (resource.RLIMIT_CPU, plan["cpu"]),
        (resource.RLIMIT_AS, plan["memory"]),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    )
    # Outside a namespace the user's other processes would count too.
    for kind, most in (*limits, *(((resource.RLIMIT_NPROC, PROCESSES),) if plan["confined"] else ())):
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))
    os.execvp(plan["command"][0], plan["command"])  # noqa: S606 - a shell is what this avoids


if __name__ == "__main__":
    main()
