"""serval up --detach, the printed curl, status, a second up, down."""
import json
import os
import re
import subprocess
import time

from harness import Cluster, Run, bin_folder, listens, require


def comes_up(cluster, seen):
    done = cluster.up()
    require(done.returncode == 0, f"up ended with {done.returncode}: {done.stderr}")
    seen["out"] = done.stdout
    require(f"http://127.0.0.1:{cluster.http_port}" in done.stdout, f"no URL in: {done.stdout}")
    require("curl " in done.stdout, f"no curl line in: {done.stdout}")


def printed_curl_streams(seen):
    command = seen["out"][re.search(r"^curl ", seen["out"], re.M).start():]
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    require(done.returncode == 0, f"curl ended with {done.returncode}: {done.stderr[-300:]}")
    events = [line[6:] for line in done.stdout.splitlines() if line.startswith("data: ")]
    require(events and events[-1] == "[DONE]", f"the last event is {events[-1:]}")
    text = "".join((choice["delta"].get("content") or "") for event in events[:-1]
                   for choice in json.loads(event)["choices"])
    require(len(events) > 4 and text.strip(), f"{len(events)} events, text {text!r}")


def status_shows_six_ready_nodes(cluster):
    plain = cluster.serval("status")
    require(plain.returncode == 0, f"status ended with {plain.returncode}: {plain.stderr}")
    rows = [line.split() for line in plain.stdout.splitlines()[2:]]
    names = sorted(row[0] for row in rows if row[2] == "ready")
    expected = ["coordinator", "decode-0", "decode-1", "kvstore-0", "prefill-0", "prefill-1"]
    require(names == expected, f"ready: {names}")
    as_json = json.loads(cluster.serval("status", "--json").stdout)
    require(as_json["ready"] and len(as_json["nodes"]) == 6, f"--json says {as_json}")
    for node in as_json["nodes"]:
        require(os.path.exists(f"/proc/{node['pid']}"), f"{node['name']} has no process {node['pid']}")


def second_up_says_already_up(cluster):
    before = sorted(cluster.processes())
    again = cluster.up()
    require(again.returncode == 0 and "already up" in again.stdout, f"{again.returncode}: {again.stdout}{again.stderr}")
    require(sorted(cluster.processes()) == before, "the second up changed the processes")


def down_leaves_nothing(cluster):
    endpoints = [int(node["endpoint"].rsplit(":", 1)[1]) for node in cluster.status()["nodes"]]
    begun = time.monotonic()
    done = cluster.down()
    took = time.monotonic() - begun
    require(done.returncode == 0, f"down ended with {done.returncode}: {done.stderr}")
    require(took < 5, f"down took {took:.1f} s")
    require(not cluster.processes(), f"still there: {cluster.processes()}")
    for port in {cluster.http_port, cluster.coordinator_port, *endpoints}:
        require(not listens(port), f"port {port} still listens")
    left = [name for name in os.listdir(cluster.state) if name != "log"]
    require(not left, f"left in the state folder: {left}")
    require(cluster.serval("status").returncode != 0, "status of no cluster succeeds")


def main():
    run, cluster, seen = Run(), Cluster(bin_folder()), {}
    try:
        run.check("up_detach_prints_url_and_curl", comes_up, cluster, seen)
        run.check("printed_curl_streams_text_and_done", printed_curl_streams, seen)
        run.check("status_shows_six_ready_nodes", status_shows_six_ready_nodes, cluster)
        run.check("second_up_says_already_up", second_up_says_already_up, cluster)
        run.check("down_ends_within_5_s_and_leaves_nothing", down_leaves_nothing, cluster)
    finally:
        cluster.sweep()
    run.end()


main()
