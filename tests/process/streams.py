"""Many streaming requests at once over plain sockets (asyncio, no thread each)."""
import asyncio
import json
import time


class Stream:
    """What one client received: token ids, text, the moments they came, how it ended."""

    def __init__(self, body, path="/v1/completions"):
        self.body = dict(body, stream=True)
        self.path = path
        self.ids, self.text, self.times = [], "", []
        self.finish = None
        self.done = False   # [DONE] came
        self.error = None   # what went wrong, as text

    def longest_gap(self):
        """Seconds between two neighbouring deliveries."""
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0.0)


def take_event(stream, payload):
    if payload == "[DONE]":
        stream.done = True
        return
    event = json.loads(payload)
    if "error" in event:
        stream.error = event["error"].get("message", payload)
        return
    for choice in event.get("choices", []):
        ids = choice.get("token_ids") or []
        stream.ids += ids
        stream.text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        stream.finish = choice.get("finish_reason") or stream.finish
        if ids:
            stream.times.append(time.monotonic())


async def read_head(reader):
    """(status, header lower-cased) of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    return int(head.split(" ", 2)[1]), head.lower()


async def read_stream(stream, reader):
    status, head = await read_head(reader)
    if status != 200:
        stream.error = f"HTTP {status}: {(await reader.read(2000)).decode('utf-8', 'replace')}"
        return
    text = b""
    while True:
        if "transfer-encoding: chunked" in head:
            size = int((await reader.readline()).split(b";")[0], 16)
            piece = (await reader.readexactly(size + 2))[:-2]
        else:
            piece = await reader.read(65536)
        if not piece:
            return
        text += piece
        *events, text = text.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                take_event(stream, event[6:].decode())


async def run_stream(stream, port):
    """Runs it to its end; with a broken connection `error` says so. Cancelling it closes the socket."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(stream.body).encode()
        writer.write(f"POST {stream.path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                     f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        await read_stream(stream, reader)
        if not stream.done and not stream.error:
            stream.error = "the stream ended without [DONE]"
    except (OSError, asyncio.IncompleteReadError, ValueError) as error:
        stream.error = f"{type(error).__name__}: {error}"
    finally:
        if writer is not None:
            writer.transport.abort() if not stream.done else writer.close()


async def until(condition, seconds):
    """Waits for the condition; False when it did not come in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.005)
    return True


def run_all(streams, port, meanwhile=None, seconds=120):
    """Runs all at once. `meanwhile` is an async function beside them. Streams that outlive the limit get an error."""

    async def main():
        tasks = [asyncio.ensure_future(run_stream(stream, port)) for stream in streams]
        if meanwhile:
            await meanwhile()
        _, late = await asyncio.wait(tasks, timeout=seconds)
        for task in late:
            task.cancel()
        for stream, task in zip(streams, tasks):
            if task in late:
                stream.error = f"not ended within {seconds} s"
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    return streams


def complaints(streams):
    """One line per stream that failed; empty when none did."""
    return [f"stream {i}: {stream.error or 'no finish_reason'}" for i, stream in enumerate(streams)
            if stream.error or not stream.done or not stream.finish]
