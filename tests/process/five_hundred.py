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


def rounds(cluster):
    """A leak grows the coordinator in every round; what the allocator keeps stops growing after some."""
    cluster.post("/v1/completions", {"prompt": "warm", "max_tokens": 2})
    pid = cluster.node("coordinator")["pid"]
    before, sizes, first = descriptors(pid), [], None
    for _ in range(8):
        tokens = round_of(cluster)
        cluster.settle(10)
        wait_for(f"descriptors return to {before}", lambda: abs(descriptors(pid) - before) <= 2)
        require(first is None or tokens == first, "a later round has other tokens")
        first = tokens
        sizes.append(resident_kib(pid))
        if len(sizes) > 1 and sizes[-1] < sizes[-2] * 1.01:
            break
    print(f"coordinator: {before} descriptors at first, {descriptors(pid)} at last; RSS after each round {sizes} KiB")
    require(len(sizes) > 1 and sizes[-1] < sizes[-2] * 1.01, f"RSS grew in every round: {sizes} KiB")
    counters = cluster.status()["counters"]
    require(counters["requests_failed_total"] == 0 and counters["requests_refused_total"] == 0, f"{counters}")


def main():
    run, folder = Run(), bin_folder()
    with Cluster(folder) as cluster:
        run.check("500_streams_at_once_again_and_again_and_all_returns_to_its_start", rounds, cluster)
    run.end()


main()
