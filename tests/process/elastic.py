"""Decode ranks join and leave a running cluster under load, and two of three are killed at once: no client sees an
error, the tokens are those of one process, new ranks take their part of the work."""
import asyncio
import os
import signal
import threading
import time

from harness import Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all, until

CLIENTS = 12


def body(i, tokens):
    return {"prompt": f"def number_{i}(a, b):\n    return", "max_tokens": tokens, "ignore_eos": True,
            "temperature": 0.8 if i % 2 else 0, "seed": 40 + i, "return_token_ids": True}


def expected(folder, bodies):
    with Cluster(folder, stages=1, ranks=1, settings={"kvstore": {"nodes": 0}}) as alone:
        streams = run_all([Stream(asked) for asked in bodies], alone.http_port)
        require(not complaints(streams), f"one process failed: {complaints(streams)[:3]}")
        return [stream.ids for stream in streams]


class Load:
    """Clients that ask again as soon as they are answered, until stop()."""

    def __init__(self, cluster, bodies):
        self.cluster, self.bodies = cluster, bodies
        self.ended, self.running = [], True
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        while self.running:
            streams = [Stream(asked) for asked in self.bodies]
            run_all(streams, self.cluster.http_port)
            self.ended += enumerate(streams)

    def stop(self, want):
        self.running = False
        self.thread.join()
        bad = complaints([stream for _, stream in self.ended])
        require(not bad, f"{len(bad)} of {len(self.ended)} requests failed: {'; '.join(bad[:3])}")
        for i, stream in self.ended:
            require(stream.ids == want[i], f"stream {i}: tokens differ from one process's")
        print(f"{len(self.ended)} requests, none failed")


def tokens_of(cluster, rank):
    node = cluster.node(f"decode-{rank}")
    return node["counters"].get("decode_tokens_total", 0) if node else 0


def scale(cluster, ranks):
    done = cluster.serval("scale", f"decode={ranks}")
    require(done.returncode == 0, f"scale to {ranks} ended with {done.returncode}: {done.stderr}")


def two_four_three_two(folder):
    bodies = [body(i, 200) for i in range(CLIENTS)]
    want = expected(folder, bodies)
    with Cluster(folder, stages=1, ranks=2) as cluster:
        load = Load(cluster, bodies)
        try:
            begun = time.monotonic()
            scale(cluster, 4)
            ready = time.monotonic()
            wait_for("the new ranks work", lambda: tokens_of(cluster, 2) and tokens_of(cluster, 3), 20)
            print(f"4 ranks ready after {ready - begun:.2f} s, both work {time.monotonic() - ready:.2f} s later")
            before = [tokens_of(cluster, rank) for rank in range(4)]
            wait_for("each rank has emitted some thousand tokens",
                     lambda: min(tokens_of(cluster, rank) - before[rank] for rank in range(4)) > 2000, 120)
            grown = [tokens_of(cluster, rank) - before[rank] for rank in range(4)]
            print(f"tokens of 4 ranks: {grown}")
            attempts = cluster.status()["counters"]["failovers_total"]
            begun = time.monotonic()
            scale(cluster, 3)
            print(f"one left in {time.monotonic() - begun:.2f} s")
            require(cluster.status()["counters"]["failovers_total"] == attempts, "a rank that leaves cost an attempt")
            os.kill(cluster.node("decode-1")["pid"], signal.SIGKILL)
            scale(cluster, 2)
            require(cluster.node("decode-2") is None, "decode-2 is still there")
            refused = cluster.serval("scale", "decode=0")
            require(refused.returncode == 2, f"scale to 0 ended with {refused.returncode}")
        finally:
            load.stop(want)
        cluster.settle(10)


def a_rank_that_is_told_to_end_comes_back(folder):
    """SIGTERM of one process, as in a rolling restart: it leaves in order and the launcher starts it again."""
    bodies = [body(i, 300) for i in range(8)]
    want = expected(folder, bodies)
    with Cluster(folder, stages=1, ranks=2) as cluster:
        streams = [Stream(asked) for asked in bodies]
        pid = cluster.node("decode-1")["pid"]

        async def meanwhile():
            if await until(lambda: all(len(stream.ids) > 20 for stream in streams), 60):
                os.kill(pid, signal.SIGTERM)

        run_all(streams, cluster.http_port, meanwhile)
        require(not complaints(streams), "; ".join(complaints(streams)[:3]))
        for i, stream in enumerate(streams):
            require(stream.ids == want[i], f"stream {i}: tokens differ from one process's")
        require(cluster.status()["counters"]["failovers_total"] == 0, "leaving in order cost an attempt")
        wait_for("decode-1 is started again", lambda: cluster.started_again("decode-1", pid), 40)
        cluster.settle(10)


def two_of_three_ranks_killed_at_once(folder):
    bodies = [body(i, 400) for i in range(9)]
    want = expected(folder, bodies)
    with Cluster(folder, stages=1, ranks=3) as cluster:
        streams, killed = [Stream(asked) for asked in bodies], {}
        pids = [cluster.node(f"decode-{rank}")["pid"] for rank in (0, 2)]

        async def meanwhile():
            if await until(lambda: all(len(stream.ids) > 20 for stream in streams), 60):
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                killed["at"] = time.monotonic()
                await asyncio.sleep(0)

        run_all(streams, cluster.http_port, meanwhile)
        require("at" in killed, "the moment to kill never came")
        require(not complaints(streams), "; ".join(complaints(streams)[:3]))
        for i, stream in enumerate(streams):
            require(stream.ids == want[i], f"stream {i}: tokens differ from one process's")
        require(cluster.status()["counters"]["failovers_total"] > 0, "the deaths cost no attempt: nothing was tested")
        gap = max(stream.longest_gap() for stream in streams)
        print(f"longest gap between tokens: {gap:.2f} s")
        for rank, pid in zip((0, 2), pids):
            name = f"decode-{rank}"
            wait_for(f"{name} is started again", lambda name=name, pid=pid: cluster.started_again(name, pid), 30)
        cluster.settle(10)


def no_rank_left_is_said_so(folder):
    """All ranks are gone and do not come back: a typed 503 with Retry-After, and no request hangs."""
    with Cluster(folder, stages=1, ranks=2, settings={"limits": {"request_deadline": "3s"}}) as cluster:
        os.kill(cluster.launcher(), signal.SIGSTOP)  # nobody starts them again
        try:
            for rank in (0, 1):
                os.kill(cluster.node(f"decode-{rank}")["pid"], signal.SIGKILL)
            wait_for("the coordinator knows", lambda: not cluster.status()["ready"], 10)
            begun = time.monotonic()
            status, headers, data = cluster.request("POST", "/v1/completions", body(0, 10))
            require(status == 503, f"answered {status}: {data[:200]!r}")
            require("Retry-After" in headers or "retry-after" in headers, f"no Retry-After in {headers}")
            require(time.monotonic() - begun < 5, "it hung")
        finally:
            os.kill(cluster.launcher(), signal.SIGCONT)


def main():
    run, folder = Run(), bin_folder()
    run.check("two_four_three_two_ranks_under_load", two_four_three_two, folder)
    run.check("a_rank_that_is_told_to_end_comes_back", a_rank_that_is_told_to_end_comes_back, folder)
    run.check("two_of_three_ranks_killed_at_once", two_of_three_ranks_killed_at_once, folder)
    run.check("no_rank_left_is_said_so", no_rank_left_is_said_so, folder)
    run.end()


main()
