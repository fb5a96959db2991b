"""Experts and their copies move while streams run, and a decode rank is killed in the middle of it: no client sees an
error, the tokens are those of one process, and the ranks agree on one plan in the end. Prints what moving costs steps."""
import os
import signal

from harness import Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all, until

RANKS = 3
NAMES = [f"decode-{i}" for i in range(RANKS)]
# Plans are made as often as can be, whatever they gain.
PLANS = {"decode": {"redundant_experts": 4, "eplb": "on", "eplb_window": "2s", "eplb_interval": "500ms",
                    "eplb_min_gain": 0.0}}


def bodies(count, tokens):
    return [{"prompt": f"def number_{i}(a, b):\n    return", "max_tokens": tokens, "ignore_eos": True,
             "temperature": 0.8 if i % 2 else 0, "seed": 40 + i, "return_token_ids": True} for i in range(count)]


def coordinator(cluster, name):
    return cluster.status()["counters"][name]


def ranks(cluster, name):
    """A counter of every rank that is there."""
    nodes = [cluster.node(rank) for rank in NAMES]
    return [node["counters"].get(name, 0) for node in nodes if node]


def one_plan(cluster):
    epoch = coordinator(cluster, "expert_plan_epoch")
    return epoch > 0 and all(seen == epoch for seen in ranks(cluster, "expert_epoch")) and not any(
        ranks(cluster, "experts_loading"))


def expected(folder, asked):
    with Cluster(folder, stages=1, ranks=1, settings={"kvstore": {"nodes": 0}}) as alone:
        streams = run_all([Stream(body) for body in asked], alone.http_port)
        require(not complaints(streams), f"one process failed: {complaints(streams)[:3]}")
        return [stream.ids for stream in streams]


def compare(streams, want):
    require(not complaints(streams), "; ".join(complaints(streams)[:3]))
    for i, (stream, ids) in enumerate(zip(streams, want)):
        require(stream.ids == ids, f"stream {i}: {len(stream.ids)} tokens differ from one process's {len(ids)}")


def experts_move_under_load(folder):
    asked = bodies(8, 1500)
    want = expected(folder, asked)
    with Cluster(folder, stages=1, ranks=RANKS, settings=PLANS) as cluster:
        streams = run_all([Stream(body) for body in asked], cluster.http_port)
        compare(streams, want)
        plans, balance = (coordinator(cluster, name) for name in ("expert_plans_total", "expert_balancedness"))
        steps, loading = (sum(ranks(cluster, name)) for name in ("decode_steps_total", "decode_steps_loading_total"))
        spent, beside = (sum(ranks(cluster, name)) for name in
                         ("decode_step_seconds_total", "decode_step_seconds_loading_total"))
        require(plans >= 2, f"{plans} plans became active")
        require(loading > 0, "no step ran while experts were loaded")
        calm = (spent - beside) / max(steps - loading, 1)
        print(f"{plans:.0f} plans, balancedness {balance:.3f}, {sum(ranks(cluster, 'experts_loaded_total')):.0f} experts"
              f" loaded; step {1000 * calm:.2f} ms, {1000 * beside / loading:.2f} ms while loading"
              f" ({loading:.0f} of {steps:.0f} steps)")
        wait = sum(ranks(cluster, "expert_wait_seconds_total")) / spent
        print(f"exposed wait for experts: {100 * wait:.1f} % of the steps' time")
        cluster.settle(10)
        wait_for("the ranks agree on one plan", lambda: one_plan(cluster), 20)


def a_rank_dies_while_experts_move(folder):
    asked = bodies(8, 1200)
    want = expected(folder, asked)
    with Cluster(folder, stages=1, ranks=RANKS, settings=PLANS) as cluster:
        pid = cluster.node("decode-1")["pid"]
        streams = [Stream(body) for body in asked]

        async def meanwhile():
            moving = await until(lambda: any(ranks(cluster, "experts_loading")), 30)
            require(moving, "no experts moved")
            os.kill(pid, signal.SIGKILL)

        run_all(streams, cluster.http_port, meanwhile)
        compare(streams, want)
        wait_for("decode-1 is started again and all are ready", lambda: cluster.started_again("decode-1", pid), 30)
        wait_for("the ranks agree on one plan", lambda: one_plan(cluster), 20)
        print(f"{coordinator(cluster, 'expert_plans_total'):.0f} plans,"
              f" {coordinator(cluster, 'expert_plans_aborted_total'):.0f} aborted,"
              f" {coordinator(cluster, 'failovers_total'):.0f} failovers")
        cluster.settle(10)


if __name__ == "__main__":
    run = Run()
    binaries = bin_folder()
    run.check("experts move under load", experts_move_under_load, binaries)
    run.check("a rank dies while experts move", a_rank_dies_while_experts_move, binaries)
    run.end()
