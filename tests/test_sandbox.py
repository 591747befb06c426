"Programs that try to escape, to survive or to exceed their limits; and the providers' protocols."

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r1nb.judges import ADDRESSES, score_program, score_programs
from r1nb.rewards import code_reward
from r1nb.sandbox import Limits, guarantees, refused_calls, run_program
from r1nb.settings import InputError

QUICK = Limits(
    wall_seconds=6, cpu_seconds=2, memory_mib=256, disk_mib=16, output_kib=256, processes=16
)
PY = """import os, sys, time, socket, ctypes, fcntl, mmap, resource, signal, subprocess, pathlib
libc = ctypes.CDLL(None, use_errno=True)
def done(result):
    if result in (-1, 2**64 - 1): raise OSError(ctypes.get_errno(), 'refused')
    return result
"""
ESCAPED = """try:
    {}
    print('ESCAPED')
except BaseException as e: print('refused', type(e).__name__)
"""

# What must not be possible; {secret} is a file of the host, {port} a port where a server listens.
ATTEMPTS = {
    "read a file of the host": "open('{secret}').read()",
    "read the password file": "open('/etc/shadow').read()",
    "list the homes": "assert os.listdir('/home')",
    "read the home folder": (
        "assert any(os.path.isfile(os.path.join('{home}', f)) for f in os.listdir('{home}'))"
    ),
    "write beside the secret": "open('{secret}.new', 'w').write('x')",
    "write into the system": "open('/usr/bin/escaped', 'w').write('x')",
    "write into the root": "open('/escaped', 'w').write('x')",
    "change its own source": "open(__file__, 'a').write('x')",
    "change the interpreter": (
        "open(os.path.join(os.path.dirname(os.__file__), 'os.py'), 'a').write('#')"
    ),
    "a link to the secret": "os.symlink('{secret}', 'link'); open('link').read()",
    "a hard link to the secret": "os.link('{secret}', 'link')",
    "the secret through /proc": "open('/proc/1/root{secret}').read()",
    "the environment of another process": (
        "assert b'R1NB_SECRET' in open('/proc/1/environ', 'rb').read()"
    ),
    "its own environment": "assert 'R1NB_SECRET' in os.environ",
    "a host on loopback": "socket.create_connection(('127.0.0.1', {port}), 2)",
    "an abstract socket": "s = socket.socket(socket.AF_UNIX); s.connect('\\0r1nb-{port}')",
    "another interface": "assert [n for _, n in socket.if_nameindex() if n != 'lo']",
    "become root": "os.setuid(0)",
    "a new user namespace": "assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount something": "assert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "change the root": "os.chroot('.')",
    "make a device": (
        "os.mknod('disk', 0o666 | 0o060000, os.makedev(254, 0)); open('disk', 'rb').read(1)"
    ),
    "raise its limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "raise its process limit": "resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
    "a kernel setting": "open('/proc/sys/kernel/core_pattern', 'w').write('x')",
    "see the host's processes": "assert len([p for p in os.listdir('/proc') if p.isdigit()]) > 8",
    "trace another process": (
        "assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 and os.getppid() > 1"
    ),
    "trace the first process": "done(libc.ptrace(16, 1, 0, 0))",
    "seize the first process": "done(libc.ptrace(0x4206, 1, 0, 0))",
    "be traced by its parent": "done(libc.ptrace(0, 0, 0, 0))",
    "read the first process": "done(libc.process_vm_readv(1, None, 0, None, 0, 0))",
    "write the first process": "done(libc.process_vm_writev(1, None, 0, None, 0, 0))",
    "the memory of the first process": "open('/proc/1/mem', 'r+b')",
    "its own memory by file": "open('/proc/self/mem', 'r+b')",
    "a descriptor of the first process": (
        "done(libc.syscall({pidfd_getfd}, os.pidfd_open(1), 0, 0))"
    ),
    "kill the first process by pidfd": (
        "signal.pidfd_send_signal(os.pidfd_open(1), 9); time.sleep(0.2); raise OSError"
    ),
    "compare processes": "done(libc.syscall({kcmp}, 1, os.getpid(), 0, 0, 0))",
    "memory in a memfd": "os.memfd_create('x')",
    "secret memory": "done(libc.syscall({memfd_secret}, 0))",
    "a System V segment": "done(libc.shmget(0, 1 << 20, 0o1600))",
    "a System V queue": "done(libc.msgget(0, 0o1600))",
    "System V semaphores": "done(libc.semget(0, 1, 0o1600))",
    "a POSIX queue": "done(libc.mq_open(b'/x', 0o102, 0o600, None))",
    "shared memory without a file": "mmap.mmap(-1, 1 << 20)",
    "shared memory of zeros": "mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20)",
    "pages given to a pipe": "done(libc.vmsplice(os.pipe()[1], None, 0, 0))",
    "a ring of requests": "done(libc.syscall({io_uring_setup}, 8, bytes(120)))",
    "a ring of the older kind": "done(libc.syscall({io_setup}, 8, bytes(8)))",
    "handling its page faults": "done(libc.syscall({userfaultfd}, 1))",
    "counters of the processor": "done(libc.syscall({perf_event_open}, bytes(128), 0, -1, -1, 0))",
    "a program in the kernel": "done(libc.syscall({bpf}, 0, bytes(128), 128))",
    "a key in the kernel": "done(libc.syscall({add_key}, b'user', b'x', b'y', 1, -2))",
    "keys of the session": "done(libc.syscall({keyctl}, 0, -3, 0))",
    "a child in new namespaces": "done(libc.syscall({clone}, 0x10000011, 0, 0, 0, 0))",
    "a child by clone3": "done(libc.syscall(435, (ctypes.c_uint64 * 8)(0x10000000), 64))",
    "the namespace of the first process": "done(libc.setns(os.open('/proc/1/ns/net', 0), 0))",
    "namespaces by pidfd": "done(libc.setns(os.pidfd_open(1), 0x40000000))",
    "a mount of the new kind": "done(libc.syscall(430, b'tmpfs', 0))",
    "a copy of the mounts": "done(libc.syscall(428, -100, b'/', 1))",
    "a file by its handle": "done(libc.open_by_handle_at(0, bytes(64), 0))",
    "type into the terminal": "fcntl.ioctl(0, 0x5412, b'x')",
    "the terminal": "open('/dev/tty')",
    "a new terminal": "os.openpty()",
    "be killed last when memory runs out": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
    "ask the kernel to reboot": "open('/proc/sysrq-trigger', 'w').write('b')",
    "reboot": "done(libc.reboot(0))",
    "the machine's memory": "open('/dev/mem', 'rb')",
    "the kernel's messages": "done(libc.klogctl(10, None, 0))",
    "the clock": "time.clock_settime(time.CLOCK_REALTIME, 0)",
    "the personality of another system": "done(libc.personality(8))",
    "the kernel's network": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "packets": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "the hypervisor": "socket.socket(socket.AF_VSOCK)",
    "the kernel's ciphers": "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)",
    "larger buffers": "socket.socketpair()[0].setsockopt(1, socket.SO_SNDBUF, 1 << 26)",
    "a higher priority": "os.nice(-5)",
    "real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "files left open": "assert set(os.listdir('/proc/self/fd')) - set('0123')",
    "a sparse file": "open('sparse', 'wb').truncate(1 << 40)",
    "files deleted and open": (
        "fs = [os.open('.', os.O_TMPFILE | os.O_RDWR) for i in range(64)]; "
        "[os.write(f, bytes(1 << 20)) == 1 << 20 or 1 / 0 for f in fs]"
    ),
    "a link in place of its source": "os.symlink('{secret}', '/r1nb.box/main.py.new')",
    "its source elsewhere": "os.rename('/r1nb.box/main.py', 'main.py')",
    "a very long argument": "subprocess.run(['true', 'x' * (1 << 22)])",
    "a very large environment": "subprocess.run(['true'], env={{'x': 'x' * (1 << 22)}})",
    "fill its folder": "[open(f'f{{i}}', 'wb').write(bytes(1 << 20)) for i in range(64)]",
    "fill the shared memory": (
        "[open(f'/dev/shm/f{{i}}', 'wb').write(bytes(1 << 20)) for i in range(64)]"
    ),
}

# Programs that exceed a limit, and the statuses that are right for each.
GREEDY = {
    "fork bomb": ("while True: os.fork()", {"time", "killed", "error", "memory"}),
    "fork bomb of threads": (
        "import threading\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        {"error", "time"},
    ),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {"error", "memory"}),
    "memory of many": (
        "for _ in range(3): os.fork()\nx = bytearray(b'x') * (100 << 20)\ntime.sleep(60)",
        {"memory"},
    ),
    "endless output": ("while True: print('x' * 1000)", {"output"}),
    "endless errors": ("while True: print('x' * 1000, file=sys.stderr)", {"output"}),
    "endless loop": ("while True: pass", {"time"}),
    "ignores signals": (
        "for s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        {"time"},
    ),
    "endless sleep": ("time.sleep(1000)", {"time"}),
    "silent sleep": ("os.close(1); os.close(2); time.sleep(1000)", {"time"}),
    "deep recursion": (
        "sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
        {"killed", "error", "memory", "time"},
    ),
    "kills all processes": ("os.kill(-1, 9)", {"killed", "ok", "error"}),
    "kills its parent": ("os.kill(os.getppid(), 9); time.sleep(1)", {"killed", "ok", "error"}),
    "memory behind closed pipes": (
        "os.close(1); os.close(2)\nfor _ in range(3): os.fork()\n"
        "x = bytearray(b'x') * (100 << 20)\ntime.sleep(60)",
        {"memory", "error"},
    ),
    "undumpable memory": (
        "libc.prctl(4, 0)\nfor _ in range(3): os.fork()\n"
        "x = bytearray(b'x') * (100 << 20)\ntime.sleep(60)",
        {"memory"},
    ),
    "buffers of sockets": (
        "for _ in range(3): os.fork()\n"
        "s = [socket.socketpair() for _ in range(100)]\ntime.sleep(60)",
        {"memory"},
    ),
    "processes full of threads": (
        "import threading\nfor _ in range(3): os.fork()\n"
        "for _ in range(16): threading.Thread(target=time.sleep, args=(99,)).start()\n"
        "time.sleep(99)",
        {"error", "time", "killed"},
    ),
    "kills its group": ("os.killpg(0, 9)", {"killed", "ok", "error"}),
    "stops all processes": (
        "if os.fork() == 0: time.sleep(99)\nos.kill(-1, 19)\nos.kill(os.getpid(), 19)",
        {"time"},
    ),
    "calls by the x32 numbers": ("libc.syscall(0x40000000 + 39)", {"killed"}),
    "a daemon": (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.close(0); os.close(1); os.close(2); time.sleep(1000)\n    os._exit(0)",
        {"ok"},
    ),
    "output that is not text": ("sys.stdout.buffer.write(bytes(range(256)))", {"ok"}),
    "ignores its input": ("time.sleep(0.2)", {"ok"}),
}

isolated = pytest.mark.skipif(
    not guarantees()["files"],
    reason="not guaranteed here (bubblewrap or user namespaces missing): "
    + ", ".join(k for k, holds in guarantees().items() if not holds),
)


@pytest.fixture(scope="module", autouse=True)
def boxes(tmp_path_factory):
    "The folder for the programs of these tests, which tells them from those of other processes."
    folder = str(tmp_path_factory.mktemp("boxes"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)
        yield folder


def leftovers(boxes):
    "Command lines of sandboxed programs of these tests that are still running."
    found = []
    for line in processes_with("r1nb.box/main"):
        try:  # bubblewrap has the folder in its command, the program in its mounts
            text = line + Path(f"/proc/{line.split()[0]}/mountinfo").read_text()
        except FileNotFoundError:
            continue  # it has ended
        except OSError:
            text = boxes  # not readable: suspect it
        if boxes in text:
            found.append(line)
    return found


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    "A secret file, a secret variable, and sockets that listen."
    secret = tmp_path_factory.mktemp("host") / "secret.txt"
    secret.write_text("hunter2")
    os.environ["R1NB_SECRET"] = "hunter2"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        port = server.getsockname()[1]
        abstract.bind(f"\0r1nb-{port}")
        abstract.listen()
        clone = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), -1)
        paths = {"secret": str(secret), "port": port, "home": str(Path.home())}
        yield {**refused_calls(), "clone": clone, **paths}
    del os.environ["R1NB_SECRET"]
    assert secret.read_text() == "hunter2"
    assert [p.name for p in secret.parent.iterdir()] == ["secret.txt"]


@isolated
@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_is_refused(name, host, boxes):
    result = run_program(PY + ESCAPED.format(ATTEMPTS[name].format(**host)), limits=QUICK)
    assert "ESCAPED" not in result.stdout and "hunter2" not in result.stdout + result.stderr, result
    assert "refused" in result.stdout, result  # it was tried
    assert not leftovers(boxes)


@isolated
@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_program_is_killed(name, boxes):
    source, statuses = GREEDY[name]
    result = run_program(PY + source, stdin="x" * 200_000, limits=QUICK)
    assert result.status in statuses, result
    assert result.seconds < QUICK.wall_seconds + 4
    assert len(result.stdout) <= QUICK.output_kib << 10
    assert not leftovers(boxes)
    assert run_program("print('works')", limits=QUICK).stdout == "works\n"


# Tries to take over the first process of its namespace, and starts a child that tries to survive.
SURVIVOR = """
for call in (lambda: libc.ptrace(0x4206, 1, 0, 0), lambda: libc.ptrace(16, 1, 0, 0)):
    if call() == 0: print('TRACED')
libc.prctl(1, 0)                                # no signal when the parent dies
if os.fork() == 0:
    os.setsid()
    for n in range(3): os.close(n)
    os.execvp('sleep', ['sleep', '{marker}'])
time.sleep(0.3)
os._exit({code})
"""


def processes_with(marker):
    "Numbers and command lines of this machine's processes that contain `marker`."
    listing = subprocess.run(
        ["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True
    )
    return [line for line in listing.stdout.splitlines() if marker in line]


@isolated
@pytest.mark.parametrize("code", [0, 3])
def test_nothing_survives_the_run(code):
    marker = f"{os.getpid()}{time.time_ns() % 10**6}.{code}"
    result = run_program(PY + SURVIVOR.format(marker=marker, code=code), limits=QUICK)
    assert result.status == ("error" if code else "ok") and "TRACED" not in result.stdout, result
    assert not processes_with(marker)


@isolated
def test_names_of_empty_files_count_as_memory():
    source = "i = 0\nwhile True:\n    open(f'f{i}', 'w').close()\n    i += 1"
    limits = Limits(wall_seconds=30, cpu_seconds=25, memory_mib=64)
    assert run_program(source, limits=limits).status == "memory"


@isolated
def test_what_ordinary_programs_need_is_allowed():
    source = """
import asyncio, multiprocessing, subprocess, tempfile, threading
if __name__ == '__main__':
    lock, value = multiprocessing.Lock(), multiprocessing.Value('i', 3)
    with multiprocessing.Pool(2) as pool: print(pool.map(abs, [-1, 2]), value.value)
    thread = threading.Thread(target=print, args=('thread',))
    thread.start()
    thread.join()
    print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout.strip())
    with tempfile.TemporaryFile() as f: print(f.write(b'1234'))
    async def later(): await asyncio.sleep(0.01); return 'later'
    print(asyncio.run(later()), open('/dev/stdin').read())
"""
    result = run_program(source, stdin="input")
    expected = ["[1, 2] 3", "thread", "child", "4", "later input", ""]
    assert result.stdout.split("\n") == expected, result


HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}


@pytest.mark.parametrize("machine", HEADERS)
def test_refused_calls_have_the_kernels_numbers(machine):
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"needs {header}")
    found = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", header.read_text()))
    calls = refused_calls(machine)
    assert len(calls) > 60
    assert {name: int(found.get(name, -1)) for name in calls} == calls


def python(code, path, home, cwd, executable=sys.executable):
    "Run `code` in a new Python process with this PATH and HOME."
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    folders = f"{Path(__file__).parents[1]}:{packages}"
    return subprocess.run(
        [executable, "-c", code],
        env={
            "PATH": path,
            "HOME": str(home),
            "PYTHONPATH": folders,
            "TMPDIR": tempfile.gettempdir(),
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)


JAVASCRIPT = "from r1nb.sandbox import run_program\nprint(run_program('', 'javascript'))"


@isolated
@pytest.mark.parametrize("where", ["home", "checkout", "above"])
def test_a_folder_with_more_than_an_installation_is_not_shown(where, tmp_path):
    "`~/bin/node` does not make the home folder visible, nor `bin/node` a checkout."
    folder = tmp_path / "folder"
    (folder / "lib/node_modules").mkdir(parents=True)
    (folder / ".git").mkdir() if where == "checkout" else (folder / "below").mkdir()
    (folder / "secret").write_text("hunter2")
    executable(folder / "bin/node", f"ls -A {folder}; cat {folder}/secret; exit 0")
    home = folder if where == "home" else tmp_path
    cwd = folder / "below" if where == "above" else "/usr"
    done = python(JAVASCRIPT, f"{folder}/bin:{os.environ['PATH']}", home, cwd)
    assert "status='ok', stdout='bin\\n'" in done.stdout, done
    assert "hunter2" not in done.stdout


@isolated
def test_an_interpreter_that_needs_its_home_is_refused(tmp_path):
    executable(tmp_path / "bin/node", f"cat {tmp_path}/lib")
    (tmp_path / "lib").write_text("hunter2")
    done = python(JAVASCRIPT, f"{tmp_path}/bin:{os.environ['PATH']}", tmp_path, "/usr")
    assert "InputError: language 'javascript'" in done.stderr, done
    assert "does not run in the sandbox" in done.stderr and "hunter2" not in done.stdout


@isolated
def test_a_virtual_environment_that_is_the_home_folder(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    (tmp_path / "secret").write_text("hunter2")
    source = f"import os; print(sorted(os.listdir('{tmp_path}')))"
    code = f"from r1nb.sandbox import run_program\nprint(run_program({source!r}).stdout)"
    done = python(code, os.environ["PATH"], tmp_path, "/usr", tmp_path / "bin/python")
    assert "bin" in done.stdout and "secret" not in done.stdout, done


MISSING = (
    "import warnings; warnings.simplefilter('always')\n"
    "from r1nb.sandbox import Limits, guarantees, missing_guarantees, run_program\n"
    "print([k for k, holds in guarantees().items() if not holds])\n"
    "print(run_program({source!r}, limits=Limits(wall_seconds=8, processes=16)).status)\n"
    "print(missing_guarantees())"
)
NO_NAMESPACES = "echo 'bwrap: No permissions to create new namespace' >&2; exit 1"
NO_SECCOMP = """for a
do [ "$a" = --seccomp ] && {{ echo "bwrap: prctl(PR_SET_SECCOMP)" >&2; exit 1; }}
done
exec {bwrap} "$@"
"""


@isolated
@pytest.mark.parametrize(
    ("script", "missing", "words"),
    [
        (NO_NAMESPACES, set(guarantees()) - {"environment", "limits"}, "namespace"),
        (NO_SECCOMP, {"calls", "memory"}, "seccomp"),
    ],
)
def test_what_is_not_guaranteed_is_named(script, missing, words, tmp_path):
    executable(tmp_path / "bin/bwrap", script.format(bwrap=shutil.which("bwrap")))
    code = MISSING.format(source="print(1)")
    done = python(code, f"{tmp_path}/bin:{os.environ['PATH']}", tmp_path, "/usr")
    keys, status, said = done.stdout.splitlines()
    assert set(eval(keys)) == missing and status == "ok", done
    assert words in said and words in done.stderr and "not guaranteed: a program" in done.stderr


@isolated
def test_without_seccomp_nothing_survives_either(tmp_path):
    "There the program can trace the first process and clear its order to die; we kill it."
    executable(tmp_path / "bin/bwrap", NO_SECCOMP.format(bwrap=shutil.which("bwrap")))
    marker = f"{os.getpid()}{time.time_ns() % 10**6}.7"
    code = MISSING.format(source=PY + SURVIVOR.format(marker=marker, code=0))
    done = python(code, f"{tmp_path}/bin:{os.environ['PATH']}", tmp_path, "/usr")
    assert done.stdout.splitlines()[1] == "ok", done
    assert not processes_with(marker)


@isolated
def test_processes_are_counted_where_the_kernel_does_not_count_them(tmp_path, boxes):
    "Root that stays root is exempt from the kernel's limit, as where setpriv is missing."
    for tool in ("bwrap", "prlimit", "sh"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    bomb = "import os, time\nfor _ in range(9): os.fork()\ntime.sleep(60)"
    done = python(MISSING.format(source=bomb), str(tmp_path), tmp_path, "/usr")
    statuses = ["killed"] if os.geteuid() == 0 else ["killed", "error"]
    assert done.stdout.splitlines()[1] in statuses, done
    assert not leftovers(boxes)


@isolated
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_the_compiler_runs_in_the_sandbox(host):
    result = run_program(f'#include "{host["secret"]}"\nint main() {{}}', "cpp")
    assert result.status == "compile" and "hunter2" not in result.stderr + result.stdout
    hello = run_program('#include <cstdio>\nint main() { puts("hello"); }', "cpp")
    assert hello.stdout == "hello\n", hello


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_javascript():
    source = "console.log(require('fs').readFileSync(0, 'utf8').trim() * 2)"
    assert run_program(source, "javascript", "21").stdout == "42\n"


def test_many_at_once_keep_their_order():
    infos = [{"test_cases": [{"input": str(n), "output": str(n)}]} for n in range(12)]
    sources = ["print(input())" if n % 3 else "print(-1)" for n in range(12)]
    assert score_programs(sources, infos, parallel=4) == [float(n % 3 > 0) for n in range(12)]


def test_a_machine_without_isolation_warns(tmp_path):
    "Without bubblewrap programs run under limits only; a warning names what is not guaranteed."
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("prlimit", "sh"):
        (tools / tool).symlink_to(shutil.which(tool))
    code = (
        "import warnings; warnings.simplefilter('always')\n"
        "from r1nb.sandbox import guarantees, run_program\n"
        "r = run_program('import os; print(\"R1NB_SECRET\" not in os.environ)')\n"
        "print(r.status, r.stdout, guarantees()['files'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": str(tools), "R1NB_SECRET": "hunter2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["ok", "True", "False"], done
    for words in ("without isolation", "network", "apt-get install bubblewrap"):
        assert words in done.stderr, done.stderr


SQUARES = {"test_cases": [{"input": "3", "output": "9"}, {"input": "-2", "output": "4"}]}
PROGRAM = "n = int(input())\nprint(n * n if n > 0 else 0)"


def run_here(source, stdin=""):
    command = [sys.executable, "-c", source]
    return subprocess.run(command, input=stdin, capture_output=True, text=True)


class Service(BaseHTTPRequestHandler):
    "Piston's `execute` and the routers' `execute_batch`; runs the programs that it gets."

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        if self.path == "/api/v2/execute":
            done = run_here(body["files"][0]["content"], body["stdin"])
            run = {"stdout": done.stdout, "stderr": done.stderr, "code": done.returncode}
            answer = {"run": {**run, "signal": None}, "language": "python"}
        elif self.server.kind == "e2b":
            answer = [self.execution(run_here(script)) for script in body["scripts"]]
        else:
            outputs = [run_here(script).stdout for script in body["scripts"]]
            answer = [{"text": output, "exception_str": None} for output in outputs]
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def execution(self, done):
        logs = {"stdout": [done.stdout], "stderr": []}
        execution = {"results": [], "logs": logs, "error": None, "execution_count": 1}
        return {"execution": execution}

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def service(kind):
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.kind, server.seen = kind, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(("kind", "suffix"), [("piston", "/api/v2"), ("e2b", ""), ("morph", "")])
def test_the_protocol_of_a_provider(kind, suffix, monkeypatch):
    with service(kind) as server:
        monkeypatch.setenv(ADDRESSES[kind], f"127.0.0.1:{server.server_port}{suffix}")
        assert score_program(PROGRAM, SQUARES, provider=kind) == 0.5
        completion = [{"role": "assistant", "content": f"```python\n{PROGRAM}\n```"}]
        assert code_reward([completion], [SQUARES], provider_type=kind) == [0.5]
        assert len(server.seen) == (4 if kind == "piston" else 2)


@pytest.mark.parametrize(("kind", "variable"), ADDRESSES.items())
def test_a_provider_without_an_address_names_the_variable(kind, variable, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match=f"set {variable}"):
        score_program(PROGRAM, SQUARES, provider=kind)
    monkeypatch.setenv(variable, "127.0.0.1:9")  # no server listens there
    with pytest.raises(ConnectionError, match="127.0.0.1:9"):
        score_program(PROGRAM, SQUARES, provider=kind)
    with pytest.raises(InputError, match="did you mean 'local'"):
        score_program(PROGRAM, SQUARES, provider="locl")


@isolated
def test_a_running_program_is_found(boxes):
    "The search for leftovers finds a program that is still there."
    found = []
    source = "print('started', flush=True)\nimport time; time.sleep(3)"
    thread = threading.Thread(target=run_program, args=[source])
    thread.start()
    while thread.is_alive() and len(found) < 2:  # bubblewrap and the program
        found = leftovers(boxes)
    thread.join()
    assert len(found) >= 2 and not leftovers(boxes)
