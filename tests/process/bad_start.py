"""What cannot start says why in one clear line, ends with its exit code and leaves nothing running."""
import os
import re
import shutil
import socket
import struct
import subprocess

from harness import MODEL, SOURCE, Cluster, Run, bin_folder, listens, require, wait_for


def refused(cluster, code, *patterns):
    """`up` ends with `code`; its error output holds every pattern; nothing is left."""
    done = cluster.up()
    try:
        require(done.returncode == code, f"exit code {done.returncode}, not {code}: {done.stderr}")
        for pattern in patterns:
            require(re.search(pattern, done.stderr), f"no {pattern!r} in: {done.stderr}")
        require("ready in" not in done.stdout, f"it says ready: {done.stdout}")
        require(not cluster.processes(), f"left running: {cluster.processes()}")
        left = [name for name in (os.listdir(cluster.state) if os.path.isdir(cluster.state) else []) if name != "log"]
        require(not left, f"left in the state folder: {left}")
    finally:
        cluster.sweep()
    return done


def port_taken(folder, which):
    cluster = Cluster(folder)
    port = getattr(cluster, which)
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        done = refused(cluster, 4, f"127.0.0.1:{port}")
    require(len(done.stderr.strip().splitlines()) == 1, f"more than one line: {done.stderr}")


def model_missing(folder):
    done = refused(Cluster(folder, model="/nonexistent/model"), 5, "/nonexistent/model")
    require(len(done.stderr.strip().splitlines()) == 1, f"more than one line: {done.stderr}")


def unknown_key(folder):
    cluster = Cluster(folder, settings={"decode": {"max_bach": 8}})
    with open(cluster.config, encoding="utf-8") as file:
        line = 1 + next(i for i, text in enumerate(file) if text.startswith("max_bach"))
    refused(cluster, 3, rf"cluster\.toml:{line}:1\b", "max_batch")


def several_config_errors(folder):
    cluster = Cluster(folder, settings={"prefill": {"stages": 0}, "numerics": {"kv": "fp8"}})
    refused(cluster, 3, r"cluster\.toml:\d+:\d+.*stages", r"cluster\.toml:\d+:\d+.*kv")


def not_toml(folder):
    cluster = Cluster(folder)
    with open(cluster.config, "w", encoding="utf-8") as file:
        file.write("[cluster\nname = 1\n")
    refused(cluster, 3, r"cluster\.toml:1:")


def usage(folder):
    cluster = Cluster(folder)
    try:
        done = cluster.serval("upp")
        require(done.returncode == 2, f"exit code {done.returncode}")
    finally:
        cluster.sweep()


def corrupt_model(folder, damage, *patterns):
    cluster = Cluster(folder)
    copy = os.path.join(cluster.folder, "model")
    shutil.copytree(MODEL, copy, ignore=shutil.ignore_patterns("train"))
    damage(os.path.join(copy, "model.safetensors"), copy)
    cluster.sections["cluster"]["model"] = copy
    cluster.write_config()
    refused(cluster, 5, *patterns)


def longer_header(path, _):
    with open(path, "r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        file.seek(0)
        file.write(struct.pack("<Q", size + (1 << 40)))


def truncated(path, _):
    os.truncate(path, os.path.getsize(path) - 4096)


def wrong_shape(path, _):
    """One tensor's shape and offsets no longer agree; the header keeps its length."""
    with open(path, "r+b") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = file.read(size)
        name = b'"model.norm.weight"'
        at = header.index(b'"shape":[128]', header.index(name))
        file.seek(8 + at)
        file.write(b'"shape":[129]')


def broken_config(_, copy):
    with open(os.path.join(copy, "config.json"), "w", encoding="utf-8") as file:
        file.write('{"vocab_size": ')


def other_model_is_refused(folder):
    with Cluster(folder) as cluster:
        other = os.path.join(cluster.folder, "other.toml")
        with open(cluster.config, encoding="utf-8") as file:
            text = file.read().replace(MODEL, os.path.join(SOURCE, "tests", "golden", "tiny_flash"))
        with open(other, "w", encoding="utf-8") as file:
            file.write(text)
        done = subprocess.run([os.path.join(cluster.bin, "decode_node"), "--config", other, "--name", "decode-7"],
                              cwd=cluster.folder, capture_output=True, text=True, timeout=30, check=False)
        require(done.returncode == 3, f"exit code {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}")
        require(re.search("refused.*model", done.stderr), f"no reason in its own log: {done.stderr[-400:]}")
        wait_for("the coordinator's log names the refusal",
                 lambda: re.search("refused.*decode-7.*model", cluster.log("coordinator")), 5)
        require(cluster.all_ready(), "the cluster is not whole any more")
        require(cluster.post("/v1/completions", {"prompt": "a", "max_tokens": 4})["choices"], "no answer")
    require(not listens(cluster.http_port), "still listens")


def main():
    run, folder = Run(), bin_folder()
    run.check("http_port_taken_exits_4", port_taken, folder, "http_port")
    run.check("coordinator_port_taken_exits_4", port_taken, folder, "coordinator_port")
    run.check("model_missing_exits_5", model_missing, folder)
    run.check("unknown_key_exits_3_with_place_and_suggestion", unknown_key, folder)
    run.check("all_config_errors_at_once", several_config_errors, folder)
    run.check("broken_toml_exits_3_with_place", not_toml, folder)
    run.check("unknown_command_exits_2", usage, folder)
    run.check("checkpoint_with_wrong_header_length_exits_5", corrupt_model, folder, longer_header,
              r"model\.safetensors")
    run.check("truncated_checkpoint_exits_5", corrupt_model, folder, truncated, r"model\.safetensors")
    run.check("tensor_with_wrong_shape_is_named", corrupt_model, folder, wrong_shape, r"model\.safetensors",
              r"model\.norm\.weight")
    run.check("broken_model_config_exits_5", corrupt_model, folder, broken_config, r"config\.json")
    run.check("node_with_another_model_is_refused_in_both_logs", other_model_is_refused, folder)
    run.end()


main()
