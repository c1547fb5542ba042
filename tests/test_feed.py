"Endless batches from a stream: nothing lost, nothing twice, and every place can be returned to."
import itertools

import pytest

from vlnotes import docmnist
from vlnotes.feed import Feed
from vlnotes.sources import Skipped


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    d = tmp_path_factory.mktemp("feed")/"scenes"
    docmnist.generate(26, regions=(1, 1), seed=3).write_shards(d, n_per_shard=5)
    return f"{d}/*.tar"


def name(s): return s.id
def pairs(items, epochs): return list(zip(items, epochs))
def feed(source, prepare=name, **kw): return Feed(source, prepare, pairs, **{"buffer": 6, **kw})


@pytest.mark.parametrize("world, workers", [(1, 0), (2, 0), (1, 2), (2, 2), (7, 0)])
def test_every_sample_once_a_pass(shards, world, workers):
    seen = []
    for rank in range(world):
        mine = [x for b, _ in itertools.islice(feed(shards).start(2, rank, world, workers), 30) for x in b]
        per = {}
        for n, e in mine: per.setdefault(e, []).append(n)
        last = max(per)
        for names in per.values():
            assert len(names) == len(set(names)), "no sample twice in a pass of a process"
        seen.append(per[0])
    first = [n for s in seen for n in s]
    assert len(first) == len(set(first)) == 26, "the processes share the first pass between them"
    assert last >= 1


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("at", [1, 4, 11])
def test_going_on_from_any_place(shards, workers, at):
    whole = list(itertools.islice(feed(shards).start(3, workers=workers), 16))
    again = list(itertools.islice(feed(shards).start(3, workers=workers, place=whole[at - 1][1]), 16 - at))
    assert again == whole[at:]


def test_another_number_of_processes_starts_the_next_pass(shards):
    _, place = next(itertools.islice(feed(shards).start(4), 3, 4))
    rest = [x for r in (0, 1) for b, _ in itertools.islice(feed(shards).start(2, r, 2, place=place), 5) for x in b]
    assert {e for _, e in rest} == {1} and len({n for n, _ in rest}) == 20
    more = next(feed(shards).start(2, workers=2, place=place))
    assert all(e == 1 for _, e in more[0])


def test_another_order_each_pass_and_the_same_for_the_same_seed(shards):
    take = lambda **kw: [x for b, _ in itertools.islice(feed(shards, **kw).start(13), 4) for x in b]
    a = take()
    assert a == take() != take(seed=1) and [n for n, e in a if e == 0] != [n for n, e in a if e == 1]
    plain = take(buffer=0)
    assert [n for n, e in plain if e == 0] == sorted(n for n, e in plain if e == 0)


def test_samples_that_are_left_out(shards):
    some = feed(shards, lambda s: s.id if s.id.endswith(("0", "5")) else None)
    kept = [n for b, _ in itertools.islice(some.start(2), 2) for n, _ in b]
    assert all(n.endswith(("0", "5")) for n in kept)
    with pytest.raises(ValueError, match="nothing in .* can be used by process 0, worker 0"): next(feed(shards, lambda s: None).start(2))


def test_what_cannot_be_read_is_noted(tmp_path):
    from PIL import Image
    for i in range(3): Image.new("RGB", (9, 9)).save(tmp_path/f"{i}.png")
    (tmp_path/"bad.png").write_bytes(b"no picture")
    note = Skipped()
    batches = [b for b, _ in itertools.islice(feed(tmp_path, skipped=note).start(3), 2)]
    assert sorted(n for n, _ in batches[0]) == ["0.png", "1.png", "2.png"] and [i for i, _ in note] == ["bad.png"]


def test_one_feed_may_be_read_twice_at_a_time(shards):
    f = feed(shards)
    alone = [b for b, _ in itertools.islice(f.start(3), 4)]
    one = f.start(3)
    first = next(one)[0]
    assert len(next(f.start(5, 1, 2))[0]) == 5 # as when mean features are taken amid training
    assert [first, *(next(one)[0] for _ in range(3))] == alone
