"Programs that try to get out, to stay, or to take more than their share; and the providers' protocols."

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from r1nb.rewards import code_reward
from r1nb.judges import score_program, score_programs
from r1nb.sandbox import Limits, guarantees, run_program
from r1nb.settings import InputError

QUICK = Limits(wall_seconds=6, cpu_seconds=2, memory_mib=256, disk_mib=16, output_kib=256, processes=16)
PY = "import os, sys, time, socket, ctypes, resource, signal, subprocess, pathlib\n"
ESCAPED = "try:\n    {}\n    print('ESCAPED')\nexcept BaseException as e: print('held', type(e).__name__)\n"

# Attempts at what must not be possible; {secret} is a file of the host, {port} a port somebody listens on there.
ATTEMPTS = {
    "read a file of the host": "open('{secret}').read()",
    "read the password file": "open('/etc/shadow').read()",
    "list the homes": "assert os.listdir('/home')",
    "read the home folder": "assert any(os.path.isfile(os.path.join('{home}', f)) for f in os.listdir('{home}'))",
    "write beside the secret": "open('{secret}.new', 'w').write('x')",
    "write into the system": "open('/usr/bin/escaped', 'w').write('x')",
    "write into the root": "open('/escaped', 'w').write('x')",
    "change its own source": "open(__file__, 'a').write('x')",
    "change the interpreter": "open(os.path.join(os.path.dirname(os.__file__), 'os.py'), 'a').write('#')",
    "a link to the secret": "os.symlink('{secret}', 'link'); open('link').read()",
    "a hard link to the secret": "os.link('{secret}', 'link')",
    "the secret through /proc": "open('/proc/1/root{secret}').read()",
    "another's environment": "assert b'R1NB_SECRET' in open('/proc/1/environ', 'rb').read()",
    "its own environment": "assert 'R1NB_SECRET' in os.environ",
    "a host on loopback": "socket.create_connection(('127.0.0.1', {port}), 2)",
    "an abstract socket": "s = socket.socket(socket.AF_UNIX); s.connect('\\0r1nb-{port}')",
    "another interface": "assert [n for _, n in socket.if_nameindex() if n != 'lo']",
    "become root": "os.setuid(0)",
    "a new user namespace": "assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "mount something": "assert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "change the root": "os.chroot('.')",
    "make a device": "os.mknod('disk', 0o666 | 0o060000, os.makedev(254, 0)); open('disk', 'rb').read(1)",
    "raise its limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "raise its process limit": "resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
    "a kernel setting": "open('/proc/sys/kernel/core_pattern', 'w').write('x')",
    "see the host's processes": "assert len([p for p in os.listdir('/proc') if p.isdigit()]) > 8",
    "trace another process": "assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 and os.getppid() > 1",
    "fill its folder": "[open(f'f{{i}}', 'wb').write(bytes(1 << 20)) for i in range(64)]",
    "fill the shared memory": "[open(f'/dev/shm/f{{i}}', 'wb').write(bytes(1 << 20)) for i in range(64)]",
}

# Programs that take too much; which ends are right.
GREEDY = {
    "fork bomb": ("while True: os.fork()", {"time", "killed", "error", "memory"}),
    "fork bomb of threads": (
        "import threading\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
        {"error", "time"},
    ),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {"error", "memory"}),
    "memory of many": (
        "for _ in range(8): os.fork()\nx = bytearray(b'x') * (100 << 20)\ntime.sleep(60)",
        {"memory", "error"},
    ),
    "endless output": ("while True: print('x' * 1000)", {"output"}),
    "endless complaints": ("while True: print('x' * 1000, file=sys.stderr)", {"output"}),
    "endless loop": ("while True: pass", {"time"}),
    "deaf to signals": (
        "for s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "while True: pass",
        {"time"},
    ),
    "endless sleep": ("time.sleep(1000)", {"time"}),
    "silent sleep": ("os.close(1); os.close(2); time.sleep(1000)", {"time"}),
    "deep recursion": ("sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", {"killed", "error", "memory", "time"}),
    "kills everybody": ("os.kill(-1, 9)", {"killed", "ok", "error"}),
    "kills its parent": ("os.kill(os.getppid(), 9); time.sleep(1)", {"killed", "ok", "error"}),
    "a daemon": (
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.close(0); os.close(1); os.close(2); time.sleep(1000)\n    os._exit(0)",
        {"ok"},
    ),
    "no text": ("sys.stdout.buffer.write(bytes(range(256)))", {"ok"}),
    "does not read": ("time.sleep(0.2)", {"ok"}),
}

isolated = pytest.mark.skipif(
    not guarantees()["files"],
    reason="not guaranteed here, for want of bubblewrap or user namespaces: "
    + ", ".join(k for k, holds in guarantees().items() if not holds),
)


def leftovers():
    "Command lines of sandboxed programs that are still there."
    listing = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if "r1nb.box/main" in line]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    "A secret file, a secret variable, and somebody who listens."
    secret = tmp_path_factory.mktemp("host") / "secret.txt"
    secret.write_text("hunter2")
    os.environ["R1NB_SECRET"] = "hunter2"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        port = server.getsockname()[1]
        abstract.bind(f"\0r1nb-{port}")
        abstract.listen()
        yield {"secret": str(secret), "port": port, "home": str(Path.home())}
    del os.environ["R1NB_SECRET"]
    assert secret.read_text() == "hunter2" and [p.name for p in secret.parent.iterdir()] == ["secret.txt"]


@isolated
@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_is_held(name, host):
    result = run_program(PY + ESCAPED.format(ATTEMPTS[name].format(**host)), limits=QUICK)
    assert "ESCAPED" not in result.stdout and "hunter2" not in result.stdout + result.stderr, result
    assert "held" in result.stdout, result  # it was tried, and refused
    assert not leftovers()


@isolated
@pytest.mark.parametrize("name", GREEDY)
def test_a_greedy_program_is_ended(name):
    source, ends = GREEDY[name]
    result = run_program(PY + source, stdin="x" * 200_000, limits=QUICK)
    assert result.status in ends, result
    assert result.seconds < QUICK.wall_seconds + 4
    assert len(result.stdout) <= QUICK.output_kib << 10
    assert not leftovers()
    assert run_program("print('still here')", limits=QUICK).stdout == "still here\n"


@isolated
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_a_compiler_is_in_the_sandbox_too(host):
    result = run_program(f'#include "{host["secret"]}"\nint main() {{}}', "cpp")
    assert result.status == "compile" and "hunter2" not in result.stderr + result.stdout
    assert run_program('#include <cstdio>\nint main() { puts("hello"); }', "cpp").stdout == "hello\n"


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_javascript():
    assert (
        run_program("console.log(require('fs').readFileSync(0, 'utf8').trim() * 2)", "javascript", "21").stdout
        == "42\n"
    )


def test_many_at_once_keep_their_order():
    infos = [
        {"language": "python", "test_cases": [{"type": "stdin_stdout", "input": str(n), "output": str(n)}]}
        for n in range(12)
    ]
    sources = ["print(input())" if n % 3 else "print(-1)" for n in range(12)]
    assert score_programs(sources, infos, parallel=4) == [float(n % 3 > 0) for n in range(12)]


def test_without_walls_it_says_so(tmp_path):
    "On a machine without bubblewrap programs run under limits alone, and a warning names what is not guaranteed."
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
    assert (
        "without isolation" in done.stderr and "network" in done.stderr and "apt-get install bubblewrap" in done.stderr
    )


CALLS = {
    "language": "python",
    "test_cases": [
        {"type": "stdin_stdout", "input": "3", "output": "9"},
        {"type": "stdin_stdout", "input": "-2", "output": "4"},
    ],
}
PROGRAM = "n = int(input())\nprint(n * n if n > 0 else 0)"


class Service(BaseHTTPRequestHandler):
    "Speaks Piston's `execute` and the routers' `execute_batch`, and runs what it is sent."

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        if self.path == "/api/v2/execute":
            done = subprocess.run(
                [sys.executable, "-c", body["files"][0]["content"]], input=body["stdin"], capture_output=True, text=True
            )
            answer = {
                "run": {"stdout": done.stdout, "stderr": done.stderr, "code": done.returncode, "signal": None},
                "language": "python",
            }
        else:
            done = [subprocess.run([sys.executable, "-c", s], capture_output=True, text=True) for s in body["scripts"]]
            if self.server.kind == "e2b":
                answer = [
                    {
                        "execution": {
                            "results": [],
                            "logs": {"stdout": [d.stdout], "stderr": []},
                            "error": None,
                            "execution_count": 1,
                        }
                    }
                    for d in done
                ]
            else:
                answer = [{"text": d.stdout, "exception_str": None} for d in done]
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def service(kind):
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.kind, server.seen = kind, []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    "kind, variable, suffix",
    [("piston", "PISTON_ENDPOINTS", "/api/v2"), ("e2b", "E2B_ROUTER_URL", ""), ("morph", "MORPH_ROUTER_URL", "")],
)
def test_a_provider_speaks_its_protocol(kind, variable, suffix, monkeypatch):
    with service(kind) as server:
        monkeypatch.setenv(variable, f"127.0.0.1:{server.server_port}{suffix}")
        assert score_program(PROGRAM, CALLS, provider=kind) == 0.5
        completion = [{"role": "assistant", "content": f"```python\n{PROGRAM}\n```"}]
        assert code_reward([completion], [CALLS], provider_type=kind) == [0.5]
        assert len(server.seen) == (4 if kind == "piston" else 2)


@pytest.mark.parametrize(
    "kind, variable", [("piston", "PISTON_ENDPOINTS"), ("e2b", "E2B_ROUTER_URL"), ("morph", "MORPH_ROUTER_URL")]
)
def test_a_provider_without_an_address_says_which(kind, variable, monkeypatch):
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(InputError, match=f"set {variable}"):
        score_program(PROGRAM, CALLS, provider=kind)
    monkeypatch.setenv(variable, "127.0.0.1:9")  # nobody listens there
    with pytest.raises(ConnectionError, match="127.0.0.1:9"):
        score_program(PROGRAM, CALLS, provider=kind)
    with pytest.raises(InputError, match="did you mean 'local'"):
        score_program(PROGRAM, CALLS, provider="locl")
