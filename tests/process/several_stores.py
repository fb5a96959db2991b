"""Two kvstores, chats of several turns and deaths: what a turn left behind is found by the next, made by prefill or
by decode; a store that dies costs its share of the hits, a prefill stage that dies at most what it had not stored."""
import os
import signal

from harness import Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all, until

STORES = {"kvstore": {"nodes": 2}}


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def counter(cluster, name, nodes):
    """Sum over the nodes that are there."""
    seen = [cluster.node(node) for node in nodes]
    return sum(node["counters"].get(name, 0) for node in seen if node)


def stores(cluster):
    return counter(cluster, "kvstore_stored_total", ("kvstore-0", "kvstore-1"))


def settled(cluster):
    """Waits until no more entries arrive at the stores."""
    seen = []

    def calm():
        seen.append(stores(cluster))
        return len(seen) > 40 and len(set(seen[-40:])) == 1
    wait_for("the stores have what was made", calm, 30)


def completion(cluster, prompt, salt, most):
    return cluster.post("/v1/completions", {
        "prompt": prompt, "max_tokens": most, "ignore_eos": True, "temperature": 0, "return_token_ids": True,
        "cache_salt": salt})


def turns_hit_the_history(folder):
    with Cluster(folder, settings=STORES) as cluster, Cluster(folder, stages=1, ranks=1, chunk=64,
                                                              settings={"kvstore": {"nodes": 0}}) as alone:
        prompt, history = [3 + k % 3000 for k in range(7, 40)], 0
        for turn in range(4):
            answer = completion(cluster, prompt, "chat", 150)
            ids = answer["choices"][0]["token_ids"]
            want = completion(alone, prompt, "", 150)["choices"][0]["token_ids"]
            require(ids == want, f"turn {turn}: {ids[:8]} but one process without a store {want[:8]}")
            whole = min(history // 64, (len(prompt) - 1) // 64) * 64
            require(cached(answer) == whole, f"turn {turn}: {cached(answer)} of {len(prompt)} cached, expected {whole}")
            prompt = prompt + ids
            history = len(prompt) - 1  # the last token has no KV
            prompt = prompt + [11, 12, 13]
            settled(cluster)
        require(counter(cluster, "store_entries_put_total", ("decode-0", "decode-1")) > 0, "decode stored nothing")
        cluster.settle(10)


def chat_turns(folder):
    with Cluster(folder, settings=STORES) as cluster:
        messages, usages = [], []
        for question in ("Write a class.", "Write another one.", "And one more."):
            messages.append({"role": "user", "content": question})
            answer = cluster.post("/v1/chat/completions", {"messages": messages, "max_tokens": 200, "temperature": 0,
                                                           "ignore_eos": True})
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] or ""})
            usages.append((answer["usage"]["prompt_tokens"], cached(answer)))
            settled(cluster)
        print(f"prompt and cached tokens of the turns: {usages}")
        for (before, _), (length, found) in zip(usages, usages[1:]):
            # Text of an answer may be cut into other tokens than it was made of; the prompt before it is not.
            require(found >= before // 64 * 64, f"{found} of {length} cached, the turn before had {before}")
            require(found < length, f"{found} of {length} cached")


def tenants_are_apart(folder):
    with Cluster(folder, settings=STORES) as cluster:
        body = {"prompt": [3 + k % 900 for k in range(200)], "max_tokens": 2, "temperature": 0}

        def ask(key):
            status, _, data = cluster.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}"})
            require(status == 200, f"{status}: {data[:200]!r}")
            return cached(__import__("json").loads(data))
        require(ask("one") == 0, "cached in an empty store")
        settled(cluster)
        found = [ask("two"), ask("one"), ask("one")]
        require(found == [0, 192, 192], f"cached tokens: {found}")


def prompts(count, length):
    return [[3 + (i * 1009 + k * 31 + k * k % 7) % 3000 for k in range(length)] for i in range(count)]


def all_cached(cluster, salt, want):
    """Cached tokens of all prompts, whose tokens must be `want`."""
    total = 0
    for prompt, ids in zip(prompts(16, 330), want):
        answer = completion(cluster, prompt, salt, 4)
        require(answer["choices"][0]["token_ids"] == ids, "other tokens than cold")
        total += cached(answer)
    return total


def stores_die(folder):
    with Cluster(folder, settings=STORES) as cluster:
        want = [completion(cluster, prompt, "a", 4)["choices"][0]["token_ids"] for prompt in prompts(16, 330)]
        settled(cluster)
        whole = all_cached(cluster, "a", want)
        require(whole == 16 * 320, f"{whole} tokens cached")
        pid = cluster.node("kvstore-1")["pid"]
        os.kill(pid, signal.SIGKILL)
        part = all_cached(cluster, "a", want)
        print(f"{whole} tokens cached with two stores, {part} right after the death of one")
        require(0 < part < whole, f"{part} of {whole} cached after the death of one store")
        wait_for("all ready again", lambda: cluster.started_again("kvstore-1", pid), 30)
        settled(cluster)
        require(all_cached(cluster, "a", want) == whole, "the hit rate did not recover")
        pids = [cluster.node(f"kvstore-{i}")["pid"] for i in (0, 1)]
        for each in pids:
            os.kill(each, signal.SIGKILL)
        empty = all_cached(cluster, "a", want)
        require(empty < whole, f"{empty} cached in stores that died")
        wait_for("all ready again", lambda: all(cluster.started_again(f"kvstore-{i}", pids[i]) for i in (0, 1)), 30)
        all_cached(cluster, "a", want)
        settled(cluster)
        require(all_cached(cluster, "a", want) == whole, "the hit rate did not recover from nothing")
        cluster.settle(10)


def prefill_dies(folder):
    """R05: what was computed and stored before a stage dies is not computed again."""
    with Cluster(folder, chunk=64, settings=STORES) as cluster:
        body = {"prompt": [3 + (k * 31 + k * k % 11) % 3000 for k in range(6000)], "max_tokens": 8, "ignore_eos": True,
                "temperature": 0, "return_token_ids": True}
        calm = run_all([Stream(dict(body, cache_salt="calm"))], cluster.http_port)
        require(not complaints(calm), f"{complaints(calm)}")
        pid, base = cluster.node("prefill-1")["pid"], counter(cluster, "prefill_tokens_total", ["prefill-0"])
        stream, seen = Stream(dict(body, cache_salt="killed")), {}

        def computed():
            return counter(cluster, "prefill_tokens_total", ["prefill-0"]) - base

        async def meanwhile():
            if await until(lambda: computed() > 3000, 60):
                os.kill(pid, signal.SIGKILL)
                seen["before"] = computed()

        run_all([stream], cluster.http_port, meanwhile)
        require(not complaints([stream]), f"{complaints([stream])}")
        require(stream.ids == calm[0].ids, "other tokens than undisturbed")
        wait_for("a heartbeat tells", lambda: computed() >= 6000, 5)
        again = computed() - 6000
        print(f"killed after {seen['before']} tokens, {again} computed again")
        require(cluster.status()["counters"]["failovers_total"] > 0, "the death cost no attempt: nothing was tested")
        require(again <= seen["before"] / 2, f"{again} of {seen['before']} tokens were computed again")
        wait_for("all ready again", lambda: cluster.started_again("prefill-1", pid), 30)
        cluster.settle(10)


def main():
    run, folder = Run(), bin_folder()
    run.check("turns_hit_the_whole_history", turns_hit_the_history, folder)
    run.check("chat_turns_hit_the_turns_before", chat_turns, folder)
    run.check("tenants_are_apart", tenants_are_apart, folder)
    run.check("stores_die_and_the_hit_rate_recovers", stores_die, folder)
    run.check("a_dead_prefill_stage_left_its_blocks", prefill_dies, folder)
    run.end()


main()
