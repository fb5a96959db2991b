"""The kvstore's disk tier in a real cluster: kill -9 during writes, damaged files, a device that refuses. Whatever
happens to the store, the tokens are right, and what it had written serves again."""
import asyncio
import glob
import os
import random
import resource
import signal

from harness import Cluster, Run, bin_folder, require, wait_for
from streams import Stream, complaints, run_all

PROMPTS = 12
LENGTH = 640  # tokens: ten blocks, nine of which can come from the store


def bodies(salt):
    return [{"prompt": [3 + (i * 1009 + k * 31 + k * k % 7) % 3000 for k in range(LENGTH)], "max_tokens": 8,
             "ignore_eos": True, "temperature": 0, "return_token_ids": True, "cache_salt": salt}
            for i in range(PROMPTS)]


def ask(cluster, salt):
    """([token ids], cached tokens of all) of the prompts, one after another."""
    answers = [cluster.post("/v1/completions", body) for body in bodies(salt)]
    return ([a["choices"][0]["token_ids"] for a in answers],
            sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers))


def store(cluster):
    return cluster.node("kvstore-0")


def counter(cluster, name):
    return store(cluster)["counters"].get(name, 0)


def with_disk(folder, test, ram="4MiB", threads=1):
    """One store with a disk and little RAM."""
    settings = {"kvstore": {"nodes": 1, "ram": ram, "disk": "", "disk_bytes": "1GiB"}, "numerics": {"threads": threads}}
    cluster = Cluster(folder, settings=settings)
    cluster.sections["kvstore"]["disk"] = os.path.join(cluster.folder, "kv")
    cluster.write_config()
    with cluster:
        test(cluster)


def written(cluster):
    """Waits until what the store has is on its disk; the number of blocks there."""
    seen = []

    def settled():
        node = store(cluster)["counters"]
        seen.append((node["kvstore_disk_blocks"], node["kvstore_stored_total"], node["kvstore_blocks"]))
        return len(seen) > 30 and len(set(seen[-30:])) == 1 and seen[-1][0] >= seen[-1][2]
    wait_for("the store has written what it holds", settled, 30)
    return seen[-1][0]


def successor_ready(cluster, pid):
    """Waits for the store after the one of `pid`, its disk open and told of in a heartbeat."""
    def there():
        node = store(cluster)
        return node and node["pid"] != pid and "kvstore_disk_open" in node["counters"] and cluster.all_ready()
    wait_for("the store is started again", there, 30)


def killed(cluster):
    """kill -9 of the store; returns when its successor is ready."""
    pid = store(cluster)["pid"]
    os.kill(pid, signal.SIGKILL)
    successor_ready(cluster, pid)


def warm_after_kill(cluster):
    cold, nothing = ask(cluster, "a")
    require(nothing == 0, f"{nothing} tokens cached in an empty store")
    blocks = written(cluster)
    require(blocks >= 9 * PROMPTS, f"{blocks} blocks on disk")
    warm, before = ask(cluster, "a")
    require(warm == cold, "warm tokens differ from cold ones")
    require(counter(cluster, "kvstore_disk_reads_total") > 0, "all came from RAM: nothing was tested")
    killed(cluster)
    again, after = ask(cluster, "a")
    print(f"{blocks} blocks on disk; cached tokens {before} before the kill, {after} after it")
    require(again == cold, "tokens differ after the kill")
    require(after == before, f"{after} tokens cached, {before} before the kill")
    require(counter(cluster, "kvstore_corrupt_total") == 0, "damaged entries after the kill")


def killed_during_writes(cluster):
    """The store dies again and again in the middle of streams of puts."""
    calm, _ = ask(cluster, "calm")
    written(cluster)
    survived = 0
    for turn in range(4):  # the launcher leaves down what dies five times a minute
        salt = f"turn {turn}"
        streams = [Stream(body) for body in bodies(salt)]
        wanted = counter(cluster, "kvstore_stored_total") + 40 + 90 * turn

        async def strike():
            for _ in range(300):
                if counter(cluster, "kvstore_stored_total") >= wanted:
                    break
                await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGKILL)

        pid = store(cluster)["pid"]
        run_all(streams, cluster.http_port, strike)
        require(not complaints(streams), f"failed: {complaints(streams)[:3]}")
        require([stream.ids for stream in streams] == calm, "tokens differ while the store died")
        successor_ready(cluster, pid)
        again, cached = ask(cluster, salt)
        require(again == calm, "tokens differ with what was left")
        warm, hits = ask(cluster, "calm")
        require(warm == calm, "tokens differ with what had been written long before")
        require(hits == 9 * 64 * PROMPTS, f"only {hits} tokens of what had been written long before are found")
        require(counter(cluster, "kvstore_corrupt_total") == 0, "a damaged entry was found after a kill")
        require(counter(cluster, "kvstore_disk_quarantined_total") == 0, "the disk was put aside after a kill")
        survived += cached
    print(f"{survived} tokens of half-stored prompts served after four kills")
    cluster.settle(10)


def damage(files, rng):
    """Half written, rotten or gone."""
    for file in files:
        size = os.path.getsize(file)
        if size == 0:
            continue
        kind, at = rng.randrange(3), rng.randrange(size)
        if kind == 0:
            os.truncate(file, at)
        elif kind == 1:
            with open(file, "r+b") as stream:
                stream.seek(at)
                byte = stream.read(1)[0]
                stream.seek(at)
                stream.write(bytes([byte ^ (1 << rng.randrange(8))]))
        else:
            os.unlink(file)


def damaged_files(cluster):
    """Files are damaged while all is down, and under the running store."""
    cold, _ = ask(cluster, "a")
    written(cluster)
    rng, folder = random.Random(7), os.path.join(cluster.sections["kvstore"]["disk"], "kvstore-0")
    for turn in range(4):
        cluster.down()
        files = sorted(glob.glob(folder + "/*.blob") + glob.glob(folder + "/*.sst") + glob.glob(folder + "/*.log"))
        require(files, "no file to damage")
        damage(rng.sample(files, min(len(files), 1 + turn)), rng)
        done = cluster.up()
        require(done.returncode == 0, f"up ended with {done.returncode}: {done.stderr}")
        again, cached = ask(cluster, "a")
        require(again == cold, f"turn {turn}: tokens differ over damaged files")
        counters = store(cluster)["counters"]
        print(f"turn {turn}: {len(files)} files, cached {cached}, corrupt {counters['kvstore_corrupt_total']:g},"
              f" records {counters['kvstore_disk_damaged_records_total']:g},"
              f" put aside {counters['kvstore_disk_quarantined_total']:g}")
    written(cluster)
    killed(cluster)  # so that all is read from disk
    for file in glob.glob(folder + "/*.blob") + glob.glob(folder + "/*.log"):
        os.truncate(file, os.path.getsize(file) // 3)
    again, _ = ask(cluster, "a")
    require(again == cold, "tokens differ when files are cut under the running store")
    cluster.settle(10)


def device_refuses(cluster):
    """No file may grow beyond 64 KiB for a while, as on a full disk."""
    cold, _ = ask(cluster, "a")
    written(cluster)
    pid = store(cluster)["pid"]
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    for turn in range(3):
        again, _ = ask(cluster, f"full {turn}")
        require(again == cold, "tokens differ while the disk is full")
    wait_for("the store has met the full disk", lambda: counter(cluster, "kvstore_disk_write_errors_total") > 0, 20)
    require(store(cluster)["pid"] == pid, "the store died of a full disk")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    before = counter(cluster, "kvstore_disk_written_total")
    wait_for("the store writes again", lambda: counter(cluster, "kvstore_disk_written_total") > before, 60)
    again, _ = ask(cluster, "after")
    require(again == cold, "tokens differ after the full disk")
    written(cluster)
    require(len([line for line in cluster.log("kvstore-0").splitlines() if "disk_ill" in line]) <= 3,
            "a full disk fills the log")
    cluster.settle(10)


def another_kv_type(cluster):
    """What was written for KV of one type is nothing to a cluster of another, which starts over on the same disk."""
    ask(cluster, "a")
    written(cluster)
    cluster.down()
    cluster.sections["numerics"]["kv"] = "int8"
    cluster.write_config()
    done = cluster.up()
    require(done.returncode == 0, f"up ended with {done.returncode}: {done.stderr}")
    cold, nothing = ask(cluster, "a")
    require(nothing == 0, f"{nothing} tokens of bf16 were taken for int8")
    written(cluster)
    killed(cluster)
    warm, cached = ask(cluster, "a")
    require(warm == cold, "tokens of int8 off the disk differ from computed ones")
    require(cached == 9 * 64 * PROMPTS, f"only {cached} tokens of int8 are found on the disk")


def bad_folder(folder):
    """A disk that cannot be had is no reason not to serve."""
    cluster = Cluster(folder, settings={"kvstore": {"nodes": 1, "disk": "/proc/nothing"}})
    with cluster:
        cold, _ = ask(cluster, "a")
        warm, cached = ask(cluster, "a")
        require(warm == cold and cached > 0, f"{cached} tokens cached in RAM")
        require(counter(cluster, "kvstore_disk_open") == 0, "a disk in /proc")
        require("disk_ill" in cluster.log("kvstore-0"), "the log does not say why there is no disk")


def main():
    run, folder = Run(), bin_folder()
    run.check("warm_hits_return_after_kill_9", with_disk, folder, warm_after_kill)
    run.check("kill_9_during_writes", with_disk, folder, killed_during_writes)
    run.check("damaged_files_are_never_served", with_disk, folder, damaged_files)
    run.check("a_full_disk_fails_no_request", with_disk, folder, device_refuses)
    run.check("kv_of_another_type_is_never_served", with_disk, folder, another_kv_type)
    run.check("a_disk_that_cannot_be_had", bad_folder, folder)
    run.end()


main()
