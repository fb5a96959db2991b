"""Ends that nobody asked for in order: SIGTERM under load, kill -9 of the launcher, a node that keeps dying."""
import asyncio
import os
import signal
import subprocess
import time

from harness import Cluster, Run, bin_folder, listens, require, wait_for
from streams import Stream, run_all, until


def endless(count):
    return [Stream({"prompt": f"while {i}:", "max_tokens": 8000, "ignore_eos": True, "return_token_ids": True})
            for i in range(count)]


def all_run(streams):
    return all(stream.ids for stream in streams)


def under_load(cluster, act):
    """Runs `act` (in a thread: it may block) while eight streams run; all streams end."""
    streams, seen = endless(8), {}

    async def meanwhile():
        seen["ran"] = await until(lambda: all_run(streams), 60)
        seen["begun"] = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(None, act)

    run_all(streams, cluster.http_port, meanwhile, seconds=10)
    require(seen["ran"], "the streams never ran")
    late = [stream.error for stream in streams if "not ended" in (stream.error or "")]
    require(not late, f"{len(late)} streams hang")
    return seen["begun"]


def gone(cluster, ports):
    return not cluster.processes() and not any(listens(port) for port in ports)


def sigterm_under_load(folder):
    with Cluster(folder) as cluster:
        ports = [cluster.http_port, cluster.coordinator_port]
        launcher = cluster.launcher()
        begun = under_load(cluster, lambda: os.kill(launcher, signal.SIGTERM))
        wait_for("all is gone", lambda: gone(cluster, ports), 5)
        took = time.monotonic() - begun
        print(f"SIGTERM with 8 streams open: all gone after {took:.2f} s")
        require(took < 5, f"took {took:.1f} s")
        left = [name for name in os.listdir(cluster.state) if name != "log"]
        require(not left, f"left in the state folder: {left}")
        require(cluster.up().returncode == 0, "up does not work afterwards")


def down_under_load(folder):
    with Cluster(folder) as cluster:
        begun = under_load(cluster, cluster.down)
        require(not cluster.processes(), f"still there: {cluster.processes()}")
        require(time.monotonic() - begun < 6, "down took too long")


def launcher_killed(folder):
    with Cluster(folder) as cluster:
        ports = [cluster.http_port, cluster.coordinator_port]
        launcher = cluster.launcher()
        under_load(cluster, lambda: os.kill(launcher, signal.SIGKILL))
        wait_for("the kernel ends all nodes", lambda: gone(cluster, ports), 5)
        require(cluster.down().returncode == 0, "down fails")
        left = [name for name in os.listdir(cluster.state) if name != "log"]
        require(not left, f"left in the state folder: {left}")
        require(cluster.up().returncode == 0 and cluster.all_ready(), "up does not work afterwards")


def up_after_killed_launcher_without_down(folder):
    with Cluster(folder) as cluster:
        os.kill(cluster.launcher(), signal.SIGKILL)
        wait_for("the kernel ends all nodes", lambda: not cluster.processes(), 5)
        done = cluster.up()
        require(done.returncode == 0 and cluster.all_ready(), f"up ended with {done.returncode}: {done.stderr}")


def process_id_used_again(folder):
    """A launcher's process id that now belongs to somebody else, as after a reboot: not taken for the launcher."""
    cluster = Cluster(folder)
    with subprocess.Popen(["sleep", "300"]) as other:
        try:
            os.makedirs(cluster.state)
            with open(os.path.join(cluster.state, "launcher.pid"), "w", encoding="utf-8") as file:
                file.write(f"{other.pid} 1\n")
            with open(os.path.join(cluster.state, "nodes"), "w", encoding="utf-8") as file:
                file.write(f"decode-0 {other.pid}\n")
            require(cluster.down().returncode == 0 and other.poll() is None, "down ended a stranger")
            with open(os.path.join(cluster.state, "launcher.pid"), "w", encoding="utf-8") as file:
                file.write(f"{other.pid} 1\n")
            done = cluster.up()
            require(done.returncode == 0 and "ready in" in done.stdout, f"up: {done.stdout}{done.stderr}")
            require(cluster.all_ready(), "not all ready")
        finally:
            other.kill()
            cluster.sweep()


def coordinator_killed(folder):
    """Its streams are lost in this version; the nodes find the new one and the cluster serves again."""
    with Cluster(folder) as cluster:
        pid = cluster.node("coordinator")["pid"]
        under_load(cluster, lambda: os.kill(pid, signal.SIGKILL))
        wait_for("the cluster is whole again", lambda: cluster.started_again("coordinator", pid), 30)
        cluster.settle(10)
        require(cluster.post("/v1/completions", {"prompt": "a", "max_tokens": 4})["choices"], "no answer")


def node_that_keeps_dying(folder):
    """Five deaths within a minute open the circuit; the cluster says what is missing and ends in order."""
    with Cluster(folder) as cluster:
        last = 0

        def next_life():
            node = cluster.node("kvstore-0") or {}
            return node.get("state") == "ready" and node["pid"] != last and node["pid"]

        for _ in range(5):
            last = wait_for("kvstore-0 lives again", next_life, 30)
            os.kill(last, signal.SIGKILL)
        wait_for("the launcher leaves it down", lambda: "is left down" in cluster.log("launcher"), 30)
        require(cluster.post("/v1/completions", {"prompt": "a", "max_tokens": 4})["choices"], "no answer without store")


def main():
    run, folder = Run(), bin_folder()
    run.check("sigterm_to_the_launcher_ends_all_within_5_s", sigterm_under_load, folder)
    run.check("down_under_load_ends_all", down_under_load, folder)
    run.check("killed_launcher_takes_its_nodes_and_down_cleans", launcher_killed, folder)
    run.check("up_works_after_a_killed_launcher", up_after_killed_launcher_without_down, folder)
    run.check("process_id_used_again_is_no_launcher", process_id_used_again, folder)
    run.check("killed_coordinator_comes_back_and_serves", coordinator_killed, folder)
    run.check("node_that_keeps_dying_is_left_down", node_that_keeps_dying, folder)
    run.end()


main()
