"""A real cluster as processes, for tests: starts one from a generated cluster file in a temporary folder with ports
and a name of its own, talks to it, and leaves nothing behind. Python's standard library only."""
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

SOURCE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
MODEL = os.path.join(SOURCE, "models", "serval-tiny")


class Failed(Exception):
    """A check did not hold; the message says what was seen."""


def require(condition, why):
    if not condition:
        raise Failed(why)


def wait_for(what, look, seconds=20.0):
    """Calls look() until it returns something true, and returns that; Failed after the deadline."""
    until = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > until:
            raise Failed(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)


def free_ports(count):
    """Ports below the range that the kernel gives to sockets without one, so that no node takes them meanwhile."""
    ports, port = [], 20000 + (os.getpid() * 37) % 9000
    while len(ports) < count:
        port = port + 1 if port < 30000 else 20000
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    return ports


def processes_with(text):
    """Process ids whose command line holds `text`, this process and zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if text.encode() in file.read():
                    found.append(int(entry))
    return found


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Cluster:
    """`with Cluster(bin_folder, stages=1) as cluster:` is a ready cluster, ended and swept away at the end.
    settings: {"numerics": {"kv": "f32"}} adds or replaces keys of the cluster file."""

    def __init__(self, bin_folder, stages=2, ranks=2, chunk=256, model=MODEL, settings=None):
        self.bin = os.path.abspath(bin_folder)
        self.folder = tempfile.mkdtemp(prefix="serval-process-")
        self.name = os.path.basename(self.folder)
        self.http_port, self.coordinator_port = free_ports(2)
        self.config = os.path.join(self.folder, "cluster.toml")
        self.sections = {
            "cluster": {"name": self.name, "model": model, "http": f"127.0.0.1:{self.http_port}",
                        "coordinator": f"127.0.0.1:{self.coordinator_port}"},
            "prefill": {"stages": stages, "chunk_tokens": chunk},
            "decode": {"ranks": ranks, "max_batch": 32},
            "kvstore": {"nodes": 1, "ram": "256MiB"},
            "numerics": {"kv": "bf16", "threads": 1},
        }
        for section, values in (settings or {}).items():
            self.sections.setdefault(section, {}).update(values)
        self.node_count = 1 + stages + ranks + self.sections["kvstore"]["nodes"]
        self.node_count += stages * (self.sections["prefill"].get("sequence_parallel", 1) - 1)
        self.write_config()
        # As cluster/paths.h: the checkout of the binary, else the working directory, which is the temporary folder.
        root = os.path.dirname(os.path.dirname(self.bin))
        if not os.path.exists(os.path.join(root, "cluster", "local.toml")):
            root = self.folder
        self.state = os.path.join(root, ".serval", self.name)

    def write_config(self):
        with open(self.config, "w", encoding="utf-8") as file:
            for section, values in self.sections.items():
                file.write(f"[{section}]\n")
                for key, value in values.items():
                    file.write(f"{key} = {json.dumps(value)}\n")

    def __enter__(self):
        try:
            done = self.up()
            require(done.returncode == 0, f"up ended with {done.returncode}: {done.stderr}")
        except BaseException:
            self.sweep()
            raise
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            self.print_logs()
        self.sweep()

    def serval(self, *arguments, timeout=120):
        """Runs the command; its output goes through files, for a launcher that stays would hold a pipe open."""
        with open(os.path.join(self.folder, "out"), "w+") as out, open(os.path.join(self.folder, "err"), "w+") as err:
            done = subprocess.run([os.path.join(self.bin, "serval"), *arguments, "--config", self.config],
                                  cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=timeout,
                                  check=False)
            out.seek(0)
            err.seek(0)
            done.stdout, done.stderr = out.read(), err.read()
        return done

    def up(self):
        return self.serval("up", "--detach")

    def down(self):
        return self.serval("down")

    def launcher(self):
        with open(os.path.join(self.state, "launcher.pid"), encoding="utf-8") as file:
            return int(file.read().split()[0])

    def log(self, node):
        with contextlib.suppress(OSError):
            with open(os.path.join(self.state, "log", node + ".log"), encoding="utf-8", errors="replace") as file:
                return file.read()
        return ""

    def print_logs(self):
        for file in sorted(os.listdir(os.path.join(self.state, "log"))) if os.path.isdir(self.state) else []:
            lines = self.log(file.removesuffix(".log")).splitlines()
            print(f"--- the end of {file}", *lines[-12:], sep="\n")

    def processes(self):
        return processes_with(self.config)

    def sweep(self):
        """Nothing of the cluster stays, whatever the test did to it."""
        with contextlib.suppress(Exception):
            self.down()
        for pid in self.processes():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- HTTP

    def request(self, method, path, body=None, headers=None, timeout=60):
        """(status, headers, body bytes) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
        try:
            data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def post(self, path, body):
        status, _, data = self.request("POST", path, body)
        require(status == 200, f"{path} answered {status}: {data[:300]!r}")
        return json.loads(data)

    def status(self):
        code, _, data = self.request("GET", "/cluster", timeout=10)
        require(code == 200, f"/cluster answered {code}")
        return json.loads(data)

    def node(self, name):
        return next((node for node in self.status()["nodes"] if node["name"] == name), None)

    def all_ready(self):
        status = self.status()
        ready = [node for node in status["nodes"] if node["state"] == "ready"]
        return status["ready"] and len(ready) == self.node_count

    def started_again(self, name, former_pid):
        """All are ready, and `name` is another process than before. A coordinator that is dying (its port listens
        until the kernel has swept the killed process away) or not up yet says no."""
        try:
            node = self.node(name)
            return node is not None and node["pid"] not in (0, former_pid) and self.all_ready()
        except (OSError, http.client.HTTPException):
            return False

    def settle(self, seconds):
        """Waits until no request is left and every node has said since then that it holds nothing: no sequence, no
        KV block, no lease. The store's own blocks are its cache and stay."""
        ended = [0.0]

        def requests_gone():
            status = self.status()
            counters = status["counters"]
            ended[0] = time.monotonic()
            return status["running"] == 0 and status["waiting"] == 0 and not any(
                counters[name] for name in ("requests_live", "requests_queued", "promised_blocks", "open_calls"))

        def nodes_idle():
            status = self.status()
            now, held = time.monotonic(), []
            for node in status["nodes"]:
                fresh = node["role"] == "coordinator" or node["heartbeat_age_s"] < now - ended[0]
                keys = ("running", "waiting") if node["role"] == "kvstore" else ("running", "waiting", "blocks_used")
                if not fresh or any(node[key] for key in keys) or node["counters"].get("kvstore_leases"):
                    held.append(node["name"])
            return not held

        until = time.monotonic() + seconds
        wait_for("no request is left", requests_gone, seconds)
        wait_for("every node holds nothing", nodes_idle, max(0.0, until - time.monotonic()))


class Run:
    """The checks of one file: each prints its line, the last code is the process's."""

    def __init__(self):
        self.failed = 0

    def check(self, name, function, *arguments):
        begun = time.monotonic()
        try:
            function(*arguments)
        except Exception as error:  # any failure is this check's, the others still run
            self.failed += 1
            why = " ".join(str(error).split()) or type(error).__name__
            print(f"check FAILED {name}: {why}")
            if not isinstance(error, Failed):
                traceback.print_exc(file=sys.stdout)
        else:
            print(f"check ok {name} ({time.monotonic() - begun:.1f} s)")
        sys.stdout.flush()

    def end(self):
        sys.exit(1 if self.failed else 0)


def bin_folder():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} BIN_FOLDER")
    return sys.argv[1]
