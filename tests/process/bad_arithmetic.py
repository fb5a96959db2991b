"""Bit flips and NaN in the arithmetic of real nodes (faults R35 to R38): row checksums find them before anything wrong
leaves, the node ends itself and is started afresh, and every client gets the tokens of the undisturbed run."""
import json
import os
import shutil
import subprocess
import tempfile

from harness import MODEL, Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all

STREAMS = 8
ANSWER = 120


def bodies(salt):
    return [{"prompt": f"def number_{i}(a, b):\n    return", "max_tokens": ANSWER, "ignore_eos": True,
             "temperature": 0.8 if i % 2 else 0, "seed": 40 + i, "return_token_ids": True,
             "cache_salt": salt} for i in range(STREAMS)]


def tokens_of(cluster):
    streams = run_all([Stream(body) for body in bodies("bad arithmetic")], cluster.http_port)
    require(not complaints(streams), "; ".join(complaints(streams)[:3]))
    return [stream.ids for stream in streams]


def calm_tokens(folder, calm=[]):
    if not calm:
        with Cluster(folder) as cluster:
            calm.append(tokens_of(cluster))
            require(int(cluster.node("decode-0")["counters"]["product_rows_checked_total"]) > 1000,
                    "the rows of products are not checked")
    return calm[0]


def weight_flips_in(node, after):
    def run(folder):
        want = calm_tokens(folder)
        with Cluster(folder, settings={"faults": {"inject": f"{node}:weight:{after}"}}) as cluster:
            pid = cluster.node(node)["pid"]
            got = tokens_of(cluster)
            require("node.quarantined" in cluster.log(node), "the flip was not found")
            require(got == want, "tokens differ from those of the undisturbed run")
            wait_for("it is started afresh", lambda: cluster.started_again(node, pid), 30)
            cluster.settle(10)
    return run


def low_flip_is_found_by_the_scrub(node, after):
    def run(folder):
        want = calm_tokens(folder)
        settings = {"faults": {"inject": f"{node}:weight_low:{after}"}, "numerics": {"scrub": "3s"}}
        with Cluster(folder, settings=settings) as cluster:
            pid = cluster.node(node)["pid"]
            tokens_of(cluster)  # too small a flip for the checksums
            wait_for("the scrub finds it", lambda: "found by a scrub" in cluster.log(node), 15)
            wait_for("it is started afresh", lambda: cluster.started_again(node, pid), 30)
        with Cluster(folder, settings={"numerics": {"scrub": "300ms"}}) as cluster:
            require(tokens_of(cluster) == want, "tokens differ from those of the undisturbed run")
            require("node.quarantined" not in cluster.log(node), "the scrub took sound weights for bad ones")
    return run


def product_flips_once(folder):
    want = calm_tokens(folder)
    with Cluster(folder, settings={"faults": {"inject": "decode-0:product:20, decode-1:product:20"}}) as cluster:
        require(tokens_of(cluster) == want, "tokens differ from those of the undisturbed run")
        faults = [cluster.node(f"decode-{i}")["counters"]["product_faults_transient_total"] for i in range(2)]
        require(sum(faults) >= 1, "the flip was not found")
        require(cluster.status()["counters"]["failovers_total"] == 0, "a transient fault cost an attempt")


def row_becomes_nan_in(node, after):
    def run(folder):
        want = calm_tokens(folder)
        with Cluster(folder, settings={"faults": {"inject": f"{node}:hidden_nan:{after}"}}) as cluster:
            require(tokens_of(cluster) == want, "tokens differ from those of the undisturbed run")
            require("numerical_error" in cluster.log(node), "no row became NaN: nothing was tested")
            cluster.settle(10)
    return run


def damaged_shard(folder):
    """One bit of a weight on disk differs from its line of digests: the load is refused, file and tensor named."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = os.path.join(temporary, "model")
        shutil.copytree(MODEL, copy)
        require(os.path.exists(os.path.join(copy, "tensors.xxh128")), "the model carries no digests")
        shard = os.path.join(copy, "model.safetensors")
        with open(shard, "r+b") as file:
            header = int.from_bytes(file.read(8), "little")
            names = json.loads(file.read(header))
            begin, _ = names["model.layers.1.mlps.0.up_proj.weight"]["data_offsets"]
            file.seek(8 + header + begin + 5)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x10]))
        done = subprocess.run([os.path.join(folder, "serval"), "verify", copy], capture_output=True, text=True,
                              timeout=60, check=False)
        said = done.stdout + done.stderr
        require(done.returncode != 0, "a damaged shard was taken")
        require("model.safetensors" in said and "model.layers.1.mlps.0.up_proj.weight" in said, f"it said: {said[-500:]}")


def main():
    run, folder = Run(), bin_folder()
    run.check("weight_flip_in_decode_1", weight_flips_in("decode-1", 40), folder)
    run.check("weight_flip_in_prefill_0", weight_flips_in("prefill-0", 3), folder)
    run.check("low_flip_in_decode_0_is_found_by_the_scrub", low_flip_is_found_by_the_scrub("decode-0", 20), folder)
    run.check("low_flip_in_prefill_0_is_found_by_the_scrub", low_flip_is_found_by_the_scrub("prefill-0", 3), folder)
    run.check("product_flip_is_mended", product_flips_once, folder)
    run.check("nan_row_in_decode_0", row_becomes_nan_in("decode-0", 30), folder)
    run.check("nan_row_in_prefill_0", row_becomes_nan_in("prefill-0", 3), folder)
    run.check("damaged_shard_is_refused", damaged_shard, folder)
    run.end()


main()
