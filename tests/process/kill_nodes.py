"""kill -9 of a node while streams run: no client sees an error, the tokens are those of the undisturbed run, the
launcher starts the node again and the cluster is whole."""
import os
import signal

from harness import Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all, until

STREAMS = 8
ANSWER = 400


def decode_bodies():
    return [{"prompt": f"def number_{i}(a, b):\n    return", "max_tokens": ANSWER, "ignore_eos": True,
             "temperature": 0.8 if i % 2 else 0, "seed": 40 + i, "return_token_ids": True} for i in range(STREAMS)]


def prefill_bodies():
    """Prompts of some thousand tokens each, none of them cached: the prefill takes a while."""
    return [{"prompt": [3 + (i * 1009 + k * 31) % 3000 for k in range(3000)], "max_tokens": 16, "ignore_eos": True,
             "temperature": 0, "return_token_ids": True} for i in range(STREAMS)]


def undisturbed(cluster, bodies):
    streams = run_all([Stream(dict(body, cache_salt="undisturbed")) for body in bodies], cluster.http_port)
    require(not complaints(streams), f"the undisturbed run failed: {complaints(streams)[:3]}")
    return streams


def killed_while(cluster, name, bodies, moment):
    """Runs the streams, kills `name` once moment(streams) holds, compares with the undisturbed run."""
    calm = undisturbed(cluster, bodies)
    streams, seen = [Stream(dict(body, cache_salt="killed " + name)) for body in bodies], {}
    pid = cluster.node(name)["pid"]

    async def meanwhile():
        if await until(lambda: moment(streams), 60):
            os.kill(pid, signal.SIGKILL)
            seen["open"] = sum(not stream.done for stream in streams)

    run_all(streams, cluster.http_port, meanwhile)
    gap = max(stream.longest_gap() for stream in streams)
    print(f"{name} killed with {seen.get('open')} streams open: longest gap between tokens {gap:.2f} s,"
          f" {max(stream.longest_gap() for stream in calm):.2f} s undisturbed")
    require("open" in seen, "the moment to kill never came")
    require(seen["open"] > 0, "no stream was open any more")
    require(not complaints(streams), "; ".join(complaints(streams)[:3]))
    for i, (a, b) in enumerate(zip(calm, streams)):
        require(len(a.ids) == bodies[i]["max_tokens"], f"undisturbed stream {i} has {len(a.ids)} tokens")
        require(a.ids == b.ids, f"stream {i}: {len(b.ids)} tokens differ from the undisturbed {len(a.ids)}")
    if name.startswith("decode"):
        require(cluster.status()["counters"]["failovers_total"] > 0, "the death cost no attempt: nothing was tested")
    wait_for(f"{name} is started again and all are ready",
             lambda: cluster.started_again(name, pid), 30)
    cluster.settle(10)


def all_stream(streams):
    return all(len(stream.ids) >= ANSWER // 20 for stream in streams)


def kill_prefill(cluster, name):
    def started(_, base=[]):
        """The first look comes before the streams' prompts are computed: what grows after it is theirs."""
        done = cluster.node("prefill-0")["counters"]["prefill_tokens_total"]
        base.append(done)
        return done > base[0]
    killed_while(cluster, name, prefill_bodies(), started)


def new_requests_after_kill(cluster, name):
    """Requests that arrive while the node is away wait for it and end well."""
    pid = cluster.node(name)["pid"]
    os.kill(pid, signal.SIGKILL)
    streams = run_all([Stream(dict(body, cache_salt="after " + name, max_tokens=20)) for body in decode_bodies()],
                      cluster.http_port)
    require(not complaints(streams), "; ".join(complaints(streams)[:3]))
    wait_for("all ready again", lambda: cluster.started_again(name, pid), 30)


def with_cluster(test, *arguments, **shape):
    def run(folder):
        with Cluster(folder, **shape) as cluster:
            test(cluster, *arguments)
    return run


def main():
    run, folder = Run(), bin_folder()
    run.check("decode_rank_killed_under_8_streams", with_cluster(killed_while, "decode-1", decode_bodies(), all_stream),
              folder)
    run.check("other_decode_rank_killed", with_cluster(killed_while, "decode-0", decode_bodies(), all_stream), folder)
    run.check("kvstore_killed_under_8_streams", with_cluster(killed_while, "kvstore-0", decode_bodies(), all_stream),
              folder)
    for name in ("prefill-0", "prefill-1", "kvstore-0"):
        run.check(f"{name}_killed_during_prefill", with_cluster(kill_prefill, name), folder)
    run.check("rank_of_a_stage_killed_during_prefill",
              with_cluster(kill_prefill, "prefill-1", settings={"prefill": {"sequence_parallel": 2}}), folder)
    for name in ("prefill-1", "decode-0", "kvstore-0"):
        run.check(f"requests_after_the_death_of_{name}_wait", with_cluster(new_requests_after_kill, name), folder)
    run.end()


main()
