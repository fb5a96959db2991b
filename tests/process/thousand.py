"""One prompt a thousand times at temperature 0 under a mixed load gives one answer (R47): with and without a cached
prefix, in batches of every size, beside other prompts of other lengths."""
from harness import Cluster, Run, bin_folder, require
from streams import Stream, complaints, run_all

ROUNDS = 5
REPEATS = 200
OTHERS = 40
TEXT = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total /"


def repeat(round_number, i):
    # A third shares one salt and hits the store; the others are alone with theirs.
    salt = "shared" if i % 3 == 0 else f"own {round_number} {i}"
    return Stream({"prompt": TEXT * 2, "max_tokens": 24, "temperature": 0, "return_token_ids": True,
                   "ignore_eos": True, "cache_salt": salt})


def other(round_number, i):
    ids = [3 + (round_number * 977 + i * 131 + k * 17) % 3000 for k in range(1 + i * 23)]
    return Stream({"prompt": ids, "max_tokens": 4 + i, "temperature": 0.9, "seed": i, "ignore_eos": True,
                   "return_token_ids": True})


def one_answer(folder):
    answers = set()
    with Cluster(folder) as cluster:
        for number in range(ROUNDS):
            repeats = [repeat(number, i) for i in range(REPEATS)]
            mixed = repeats + [other(number, i) for i in range(OTHERS)]
            mixed.sort(key=lambda stream: hash(str(stream.body)))
            run_all(mixed, cluster.http_port)
            require(not complaints(mixed), "; ".join(complaints(mixed)[:3]))
            answers |= {tuple(stream.ids) for stream in repeats}
        cluster.settle(10)
    print(f"{ROUNDS * REPEATS} repeats, {len(answers)} different answers")
    require(len(answers) == 1, f"{len(answers)} different answers to one prompt")
    require(len(next(iter(answers))) == 24, "the answer is cut short")


def main():
    run, folder = Run(), bin_folder()
    run.check("one_answer_of_a_thousand", one_answer, folder)
    run.end()


main()
