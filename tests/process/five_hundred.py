"""500 streams at once: none fails, and the coordinator's memory and descriptors return to their start."""
import os

from harness import Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all

STREAMS = 500


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_kib(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def round_of(cluster):
    bodies = [{"messages": [{"role": "user", "content": f"Write function number {i}."}], "max_tokens": 16,
               "ignore_eos": True, "temperature": 0.7, "seed": i, "return_token_ids": True} for i in range(STREAMS)]
    streams = run_all([Stream(body, "/v1/chat/completions") for body in bodies], cluster.http_port, seconds=200)
    require(not complaints(streams), f"{len(complaints(streams))} failed: {complaints(streams)[:3]}")
    short = [i for i, stream in enumerate(streams) if len(stream.ids) != 16]
    require(not short, f"streams {short[:5]} have not 16 tokens")
    return [stream.ids for stream in streams]


def two_rounds(cluster):
    cluster.post("/v1/completions", {"prompt": "warm", "max_tokens": 2})
    pid = cluster.node("coordinator")["pid"]
    before = descriptors(pid)
    first = round_of(cluster)
    cluster.settle(10)
    after_first = resident_kib(pid)
    wait_for(f"descriptors return to {before}", lambda: abs(descriptors(pid) - before) <= 2)
    second = round_of(cluster)
    cluster.settle(10)
    after_second = resident_kib(pid)
    wait_for(f"descriptors return to {before}", lambda: abs(descriptors(pid) - before) <= 2)
    print(f"coordinator: {before} descriptors at first, {descriptors(pid)} at last; RSS {after_first} KiB after the"
          f" first round, {after_second} KiB after the second")
    require(first == second, "the second round has other tokens")
    require(after_second < after_first * 1.05, f"RSS grew from {after_first} to {after_second} KiB")
    counters = cluster.status()["counters"]
    require(counters["requests_failed_total"] == 0 and counters["requests_refused_total"] == 0, f"{counters}")


def main():
    run, folder = Run(), bin_folder()
    with Cluster(folder) as cluster:
        run.check("500_streams_at_once_twice_and_all_returns_to_its_start", two_rounds, cluster)
    run.end()


main()
