import io
import os
import pickle
import tarfile

import pytest

from qvl.data.sources import TarSource

FILES = {"a.txt": b"one", "a.json": b"{}", "deep/b.tar.gz": b"x" * 2000, "c.txt": b""}


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "000000.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_groups_members_by_key_and_reads_in_any_order(shard):
    source = TarSource(shard)
    assert source.keys == ("a", "deep/b", "c")
    assert len(source) == 3
    assert source.read("c", "txt") == b""
    assert source["deep/b"] == {"tar.gz": FILES["deep/b.tar.gz"]}
    assert source[0] == {"txt": b"one", "json": b"{}"}
    assert source.extensions("a") == ("txt", "json")


def test_pickles_without_its_open_file(shard):
    source = TarSource(shard)
    source.read("a", "txt")
    assert pickle.loads(pickle.dumps(source)).read("a", "txt") == b"one"


def test_unknown_members_are_named(shard):
    source = TarSource(shard)
    with pytest.raises(ValueError, match="no sample 'z'; it holds 3 samples"):
        source.read("z", "txt")
    with pytest.raises(ValueError, match=r"no \.png; it has \['json', 'txt'\]"):
        source.read("a", "png")


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tar shard"):
        TarSource(tmp_path / "none.tar")


@pytest.mark.parametrize("keep", [0, 100, 600, 2560, 3000])
def test_a_truncated_tar_is_an_error_not_a_short_read(shard, keep):
    whole = shard.read_bytes()
    shard.write_bytes(whole[:keep])
    with pytest.raises(ValueError, match=str(shard)):
        TarSource(shard)


def test_a_tar_cut_after_indexing_is_an_error(shard):
    source = TarSource(shard)
    shard.write_bytes(shard.read_bytes()[:2600])
    with pytest.raises(ValueError, match="should be 2000 bytes"):
        source.read("deep/b", "tar.gz")


def test_compressed_tars_are_refused(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    with pytest.raises(ValueError, match="not a readable, uncompressed tar"):
        TarSource(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_disturb_its_parent(tmp_path):
    path = tmp_path / "many.tar"
    with tarfile.open(path, "w") as tar:
        for i in range(64):
            info = tarfile.TarInfo(f"{i}.bin")
            info.size = 4000
            tar.addfile(info, io.BytesIO(bytes([i]) * 4000))
    source = TarSource(path)
    source.read("0", "bin")  # opened before the fork: both processes hold one file position
    child = os.fork()
    for _ in range(100):
        for i in range(64):
            if source.read(str(i), "bin") != bytes([i]) * 4000:
                os._exit(1) if child == 0 else pytest.fail(f"member {i} was read from another place")
    if child == 0:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
