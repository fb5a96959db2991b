"""Hundreds of mixed requests, half of whose clients leave at a random moment: streams and plain answers, n of 1 to 3,
prompts short and long, with and without a shared prefix, greedy and seeded. Who stays gets the answer that it gets
alone; afterwards nothing is held anywhere."""
import asyncio
import json
import random
import time

from harness import Cluster, Run, bin_folder, require
from streams import Stream, read_head, run_stream

CLIENTS = 300
SPREAD = 8.0  # seconds over which they come
SEED = 20


class Client:
    """One request: its body, when it comes, when it leaves (None: never), what it got."""

    def __init__(self, rng, number):
        self.stream, self.at = rng.random() < 0.5, rng.uniform(0, SPREAD)
        # At once, during the prompt, during the answer.
        self.stays = rng.choice((0.0, 0.02, 0.1, 0.5, 1.5)) * rng.uniform(0.5, 1.5) if rng.random() < 0.5 else None
        self.probe = number % 10 == 0
        self.answer, self.error = None, None
        if self.probe:
            self.stays, self.stream = None, False
            self.body = probe(number // 10 % 3)
            return
        prefix = [3 + (rng.randrange(3) * 501 + k * 7) % 3000 for k in range(200)] if rng.random() < 0.5 else []
        length = rng.choice((1, 20, 90, 700))
        self.body = {"prompt": prefix + [rng.randrange(3, 3000) for _ in range(length)],
                     "max_tokens": rng.randrange(1, 80), "ignore_eos": True, "n": rng.choice((1, 1, 1, 2, 3)),
                     "temperature": rng.choice((0, 0.8))}
        if rng.random() < 0.7:
            self.body["seed"] = rng.randrange(1 << 30)

    async def run(self, port):
        await asyncio.sleep(self.at)
        task = asyncio.ensure_future(self.run_stream(port) if self.stream else self.run_plain(port))
        if self.stays is None:
            await task
            return
        _, late = await asyncio.wait([task], timeout=self.stays)
        if late:  # the socket closes under it
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.answer, self.error = "left", None

    async def run_stream(self, port):
        stream = Stream(self.body)
        await run_stream(stream, port)
        self.error = stream.error
        self.answer = stream.ids

    async def run_plain(self, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            data = json.dumps(dict(self.body, return_token_ids=True)).encode()
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: test\r\nConnection: close\r\n"
                         b"Content-Length: %d\r\n\r\n" % len(data) + data)
            await writer.drain()
            status, _ = await read_head(reader)
            body = await reader.read(-1)
            if status != 200:
                self.error = f"HTTP {status}: {body[:200]!r}"
                return
            choices = json.loads(body)["choices"]
            if len(choices) != self.body.get("n", 1):
                self.error = f"{len(choices)} choices of {self.body.get('n', 1)}"
            self.answer = [choice["token_ids"] for choice in sorted(choices, key=lambda choice: choice["index"])]
        finally:
            writer.transport.abort()


def probe(kind):
    """A request whose answer is known beforehand."""
    return {"prompt": [5 + (kind * 211 + k * 3) % 2900 for k in range((30, 150, 400)[kind])], "max_tokens": 24,
            "ignore_eos": True, "temperature": (0, 0.7, 0.9)[kind], "seed": 11 + kind, "n": 1 + kind}


async def run_crowd(clients, port):
    done = await asyncio.wait_for(asyncio.gather(*(client.run(port) for client in clients), return_exceptions=True), 200)
    for client, result in zip(clients, done):
        if isinstance(result, Exception):
            client.error = f"{type(result).__name__}: {result}"


def crowd(cluster):
    alone = []
    for kind in range(3):
        answer = cluster.post("/v1/completions", dict(probe(kind), return_token_ids=True))
        alone.append([choice["token_ids"] for choice in sorted(answer["choices"], key=lambda choice: choice["index"])])
    rng = random.Random(SEED)
    clients = [Client(rng, number) for number in range(CLIENTS)]
    begun = time.monotonic()
    asyncio.run(run_crowd(clients, cluster.http_port))
    took = time.monotonic() - begun
    failed = [client.error for client in clients if client.error]
    require(not failed, f"{len(failed)} failed: {failed[:3]}")
    left = sum(client.answer == "left" for client in clients)
    print(f"{CLIENTS} clients in {took:.1f} s, {left} left early, of whom "
          f"{sum(c.answer == 'left' and c.stream for c in clients)} streams")
    require(left >= CLIENTS // 8, f"only {left} clients left: nothing was tested")
    for number, client in enumerate(clients):
        if client.probe:
            require(client.answer == alone[number // 10 % 3], f"client {number} got another answer than alone")
    cluster.settle(5.0)
    counters = cluster.status()["counters"]
    require(counters["requests_cancelled_total"] > 0, "no request counts as cancelled")


def main():
    run, folder = Run(), bin_folder()
    with Cluster(folder) as cluster:
        run.check("hundreds_of_mixed_requests_leave_nothing_behind", crowd, cluster)
        run.check("the_next_request_is_served", cluster.post, "/v1/completions", {"prompt": "a", "max_tokens": 2})
    with Cluster(folder, settings={"numerics": {"kv": "int8"}, "prefill": {"sequence_parallel": 2}}) as cluster:
        run.check("the_same_with_kv_in_int8_and_two_ranks_a_stage", crowd, cluster)
    run.end()


main()
