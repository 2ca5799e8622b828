from __future__ import annotations

import pytest

from qvl.engine.kv_pool import PagePool


def test_fresh_pages_lie_side_by_side():
    pool = PagePool(4)
    assert [pool.take() for _ in range(5)] == [0, 1, 2, 3, None]
    pool.release(2)
    pool.release(1)
    assert [pool.take(), pool.take()] == [1, 2]


def test_content_is_found_until_its_page_is_needed():
    pool = PagePool(3)
    a, b = pool.take(), pool.take()
    pool.publish(a, b"a")
    pool.publish(b, b"b")
    pool.release(a)
    pool.release(b)
    assert (pool.used, pool.available) == (0, 3)
    assert (pool.find(b"a"), pool.find(b"b")) == (a, b)
    pool.share(a)
    assert pool.take() == 2, "free pages first"
    assert pool.take() == b, "then the one let go longest ago"
    assert pool.find(b"b") is None
    assert pool.find(b"a") == a
    assert pool.take() is None


def test_what_was_used_last_is_kept_longest():
    pool = PagePool(3)
    pages = {key: pool.take() for key in (b"a", b"b", b"c")}
    for key, page in pages.items():
        pool.publish(page, key)
        pool.release(page)
    pool.share(pages[b"a"])
    pool.release(pages[b"a"])
    assert [pool.take(), pool.take(), pool.take()] == [pages[b"b"], pages[b"c"], pages[b"a"]]


def test_a_page_is_free_when_its_last_holder_is_gone():
    pool = PagePool(1)
    page = pool.take()
    pool.publish(page, b"x")
    pool.share(page)
    assert pool.holders(page) == 2
    pool.release(page)
    assert pool.available == 0
    pool.release(page)
    assert (pool.available, pool.holders(page)) == (1, 0)


def test_equal_content_computed_twice_is_found_once():
    pool = PagePool(2)
    first, second = pool.take(), pool.take()
    pool.publish(first, b"x")
    pool.publish(second, b"x")
    pool.release(second)
    assert pool.take() == second, "it was never to be found, so it was free"
    assert pool.find(b"x") == first


def test_worthless_content_is_not_found():
    pool = PagePool(1)
    page = pool.take()
    pool.publish(page, b"x")
    pool.discard(page)
    assert pool.find(b"x") is None
    pool.release(page)
    assert pool.take() == page
    with pytest.raises(AssertionError, match="held by nobody"):
        PagePool(1).discard(0)
