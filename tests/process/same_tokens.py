"""The same prompts give the same token ids on every topology, chunk length, batch and cache state, and those of the
model's reference file."""
import json
import os

from harness import MODEL, Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all


def prompts():
    """20 prompts of 1 to some 600 tokens; half of them longer than a KV block and the model's dense limit."""
    with open(os.path.join(MODEL, "samples.txt"), encoding="utf-8") as file:
        text = file.read()
    long = [text[i * 137:i * 137 + 700 + i * 130] for i in range(10)]
    return long + [text[i * 211:i * 211 + 1 + i * 9] for i in range(10)]


def bodies(mode, texts):
    for i, text in enumerate(texts):
        body = {"prompt": text, "max_tokens": 32, "return_token_ids": True, "cache_salt": mode}
        yield dict(body, temperature=0) if mode == "greedy" else dict(body, temperature=0.9, top_p=0.95, seed=1000 + i)


def pass_over(cluster, texts, at_once):
    """{mode: [(ids, cached tokens, prompt tokens)]}; at_once: all of a mode together, else one after another."""
    out = {}
    for mode in ("greedy", "seeded"):
        if at_once:
            streams = [Stream(body) for body in bodies(mode, texts)]
            require(not complaints(run_all(streams, cluster.http_port)), f"failed: {complaints(streams)[:3]}")
            out[mode] = [(stream.ids, 0, 0) for stream in streams]
            continue
        answers = [cluster.post("/v1/completions", body) for body in bodies(mode, texts)]
        out[mode] = [(a["choices"][0]["token_ids"], a["usage"]["prompt_tokens_details"]["cached_tokens"],
                      a["usage"]["prompt_tokens"]) for a in answers]
    return out


def stored(cluster):
    return int(cluster.node("kvstore-0")["counters"]["kvstore_stored_total"])


def cold_and_warm(folder, results, label, at_once, **shape):
    with Cluster(folder, **shape) as cluster:
        texts = prompts()
        results[label + " cold"] = pass_over(cluster, texts, at_once)
        wait_for("the store takes the prefixes", lambda: stored(cluster) > 0)
        warm = results[label + " warm"] = pass_over(cluster, texts, False)
        cluster.settle(10)
        if shape.get("settings", {}).get("decode", {}).get("share_ngram"):
            for name in ("prefill-0", "decode-0"):
                away = int(cluster.node(name)["counters"].get("ngram_rows_away_total", 0))
                require(away > 0, f"{name} had no n-gram row from a peer")
    for mode, answers in warm.items():
        for i, (ids, cached, length) in enumerate(answers):
            require(len(ids) > 0, f"{label} {mode} {i}: no tokens")
            require(length <= 64 or cached > 0, f"{label} {mode} prompt {i} of {length} tokens: nothing cached")
            require(cached < length, f"{label} {mode} prompt {i}: {cached} of {length} cached")


def all_equal(results):
    require(len(results) == 8, f"only {sorted(results)} ran")
    first_label, first = next(iter(results.items()))
    for label, result in results.items():
        for mode in first:
            for i, (a, b) in enumerate(zip(first[mode], result[mode])):
                require(a[0] == b[0], f"{mode} prompt {i}: {first_label} {a[0]} but {label} {b[0]}")
    lengths = {len(row[0]) for row in first["greedy"]}
    require(first["greedy"] != first["seeded"] and 32 in lengths, f"suspicious: lengths {lengths}")


def reference_file(folder):
    """The file was computed with KV in f32."""
    with open(os.path.join(MODEL, "reference.json"), encoding="utf-8") as file:
        rows = json.load(file)["prompts"]
    require(rows, "no prompts in reference.json")
    with Cluster(folder, settings={"numerics": {"kv": "f32"}}) as cluster:
        for row in rows:
            body = {"prompt": row["input_ids"], "max_tokens": len(row["greedy_32"]), "temperature": 0,
                    "return_token_ids": True, "ignore_eos": True}
            ids = cluster.post("/v1/completions", body)["choices"][0]["token_ids"]
            require(ids == row["greedy_32"], f"{row['prompt'][:40]!r}: {ids} but the file has {row['greedy_32']}")


def main():
    run, folder, results = Run(), bin_folder(), {}
    run.check("two_stages_two_ranks_cold_and_warm", cold_and_warm, folder, results, "2x2", True)
    run.check("one_stage_one_rank_cold_and_warm",
              lambda: cold_and_warm(folder, results, "1x1 chunk 16", False, stages=1, ranks=1, chunk=16))
    sequence = {"prefill": {"sequence_parallel": 2, "share_experts": True, "share_ngram": True},
                "decode": {"share_ngram": True}}
    run.check("two_stages_of_two_ranks_that_share_all_they_can",
              lambda: cold_and_warm(folder, results, "2x2 sp 2", False, chunk=64, settings=sequence))
    drafts = {"decode": {"mtp_steps": 3}}
    run.check("two_stages_two_ranks_with_three_drafts_a_step",
              lambda: cold_and_warm(folder, results, "2x2 mtp 3", True, settings=drafts))
    run.check("twenty_prompts_have_identical_token_ids", all_equal, results)
    run.check("greedy_tokens_of_the_reference_file", reference_file, folder)
    run.end()


main()
