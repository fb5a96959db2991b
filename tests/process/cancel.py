"""Clients that leave in the middle of a stream, of a prompt, of a plain answer: everything is free within 1 s."""
import json
import socket

from harness import Cluster, Run, bin_folder, require, wait_for

CLIENTS = 12


def send(cluster, body, path="/v1/completions"):
    data = json.dumps(body).encode()
    client = socket.create_connection(("127.0.0.1", cluster.http_port), timeout=30)
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    return client


def clients_leave(cluster, bodies, arrived):
    before = cluster.status()["counters"]["requests_cancelled_total"]
    clients = [send(cluster, body) for body in bodies]
    arrived(cluster, clients)
    open_now = cluster.status()["running"] + cluster.status()["waiting"]
    require(open_now > 0, "no request ran when the clients left")
    for client in clients:
        client.close()
    cluster.settle(1.0)
    cancelled = cluster.status()["counters"]["requests_cancelled_total"] - before
    require(cancelled == len(bodies), f"{cancelled} of {len(bodies)} counted as cancelled")


def each_has_tokens(_, clients):
    for client in clients:
        got = b""
        while got.count(b"data: ") < 4:
            piece = client.recv(65536)
            require(piece, f"the stream ended early: {got[:200]!r}")
            got += piece


def all_are_in(cluster, clients):
    wait_for("all are admitted", lambda: cluster.status()["running"] + cluster.status()["waiting"] == len(clients))


def long_answers(stream):
    return [{"prompt": f"class Number{i}:", "max_tokens": 4000, "ignore_eos": True, "stream": stream}
            for i in range(CLIENTS)]


def long_prompts():
    return [{"prompt": [3 + (i * 977 + k * 13) % 3000 for k in range(6000)], "max_tokens": 64, "stream": True}
            for i in range(CLIENTS)]


def main():
    run, folder = Run(), bin_folder()
    with Cluster(folder) as cluster:
        run.check("clients_leave_in_mid_stream", clients_leave, cluster, long_answers(True), each_has_tokens)
        run.check("clients_leave_while_they_wait_for_a_plain_answer", clients_leave, cluster, long_answers(False),
                  all_are_in)
        run.check("clients_leave_during_prefill", clients_leave, cluster, long_prompts(), all_are_in)
        run.check("the_next_request_is_served", cluster.post, "/v1/completions", {"prompt": "a", "max_tokens": 2})
    run.end()


main()
