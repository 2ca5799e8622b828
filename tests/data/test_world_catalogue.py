import json

import numpy as np
import pytest

from qvl.data.world.build_assets import read_concepts, write_shards
from qvl.data.world.catalogue import ASSETS, Catalogue, default_catalogue
from qvl.data.world.names import PREFERRED, RENAMED


def test_the_vendored_set_is_whole():
    catalogue = default_catalogue()
    assert len(catalogue.all) == 1852
    assert len(catalogue.objects) == 849
    for concept in catalogue.all[::200]:
        rgba = catalogue.rgba(concept)
        assert rgba.shape == (256, 256, 4)
        assert rgba.dtype == np.uint8
        assert rgba[..., 3].max() > 200


def test_object_names_are_unique_clean_and_lower_case():
    objects = default_catalogue().objects
    for names in ([c.en for c in objects], [c.zh for c in objects], [c.key for c in objects]):
        assert len(set(names)) == len(names)
    assert all(c.en == c.en.lower().strip() and c.en.isascii() and not set(c.en) & set(":()’") for c in objects)
    assert all(any("\u4e00" <= ch <= "\u9fff" for ch in c.zh) for c in objects)


def test_the_first_concepts_have_short_names_and_many_kinds():
    first = default_catalogue().objects[:112]
    assert all(len(c.en.split()) <= 2 and len(c.zh) <= 5 for c in first)
    assert len({c.subgroup for c in first}) >= 35
    assert len({c.subgroup for c in first[:12]}) >= 11
    assert first[0].en == "dog"
    assert first[0].zh == "狗"


@pytest.mark.parametrize(
    ("en", "phrase"),
    [
        ("dog", "a dog"),
        ("axe", "an axe"),
        ("hourglass", "an hourglass"),
        ("scissors", "scissors"),
        ("bus", "a bus"),
        ("popcorn", "popcorn"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("rhinoceros", "a rhinoceros"),
    ],
)
def test_articles(en, phrase):
    assert next(c for c in default_catalogue().objects if c.en == en).en_phrase == phrase


def test_every_preferred_and_renamed_label_exists():
    labels = {c.label for c in default_catalogue().all}
    assert set(PREFERRED) <= labels
    assert set(RENAMED) <= labels
    assert len(set(PREFERRED)) == len(PREFERRED)


def test_the_licences_travel_with_the_pictures():
    notice = (ASSETS / "NOTICE.md").read_text("utf-8")
    for holder in ("Microsoft", "LobeHub", "Miles Johnson", "Unicode, Inc.", "MIT License", "UNICODE LICENSE V3"):
        assert holder in notice


def test_a_folder_without_shards_says_what_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_assets"):
        Catalogue(tmp_path)


@pytest.fixture
def packages(tmp_path):
    art = tmp_path / "fluent-emoji-3d" / "package" / "assets"
    data = tmp_path / "emojibase-data-17.0.0"
    entries = [
        {"hexcode": "1F415", "label": "dog", "emoji": "🐕", "order": 2, "group": 3, "subgroup": 4, "tags": ["pet"]},
        {"hexcode": "2602-FE0F", "label": "umbrella", "emoji": "☂", "order": 1, "group": 3, "subgroup": 4},
        {"hexcode": "1F1E6", "label": "regional indicator A", "emoji": "🇦", "order": 0},
        {"hexcode": "1F999", "label": "no picture", "emoji": "🦙", "order": 3, "group": 3, "subgroup": 4},
    ]
    art.mkdir(parents=True)
    for language in ("en", "zh"):
        (data / language).mkdir(parents=True)
        (data / language / "data.json").write_text(json.dumps(entries), "utf-8")
    (data / "meta").mkdir()
    groups = {"groups": {"3": "animals-nature"}, "subgroups": {"4": "animal-mammal"}}
    (data / "meta" / "groups.json").write_text(json.dumps(groups), "utf-8")
    for name in ("1f415", "2602", "1f1e6", "1f415-1f3fb"):
        (art / f"{name}.webp").write_bytes(name.encode())
    return tmp_path


def test_shards_are_rebuilt_the_same_from_the_packages(packages, tmp_path):
    concepts = read_concepts(packages)
    assert [c["key"] for c in concepts] == ["2602", "1f415"]
    first = [p.read_bytes() for p in write_shards(concepts, tmp_path / "one", shards=2)]
    second = [p.read_bytes() for p in write_shards(read_concepts(packages), tmp_path / "two", shards=2)]
    assert first == second
    shards = Catalogue(tmp_path / "one")
    assert [(c.key, c.en, c.group) for c in shards.all] == [
        ("2602", "umbrella", "animals-nature"),
        ("1f415", "dog", "animals-nature"),
    ]


def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="fluent-emoji-3d"):
        read_concepts(tmp_path)
