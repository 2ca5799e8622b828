import numpy as np
import pytest

from qvl.data.world.catalogue import default_catalogue
from qvl.data.world.compose import Composer
from qvl.data.world.config import WorldConfig
from qvl.data.world.scene import ALPHA_THRESHOLD, COLOURS, Cutouts, alpha_box, paste


def black_and_white(config, index, monkeypatch, split="train"):
    """The same scene on black and on white: their difference shows the alpha that was really composed."""
    pictures = []
    for level in (0, 255):
        composer = Composer(config, default_catalogue())
        monkeypatch.setattr(composer, "background", lambda hw, rng, v=level: (np.full((*hw, 3), v, np.uint8), "x"))
        pictures.append(composer.draw(split, np.random.default_rng(index)))
    assert pictures[0].objects == pictures[1].objects
    alpha = 255 - (pictures[1].pixels_HW3.astype(int) - pictures[0].pixels_HW3).max(2)
    return pictures[0], alpha


@pytest.mark.parametrize("index", range(12))
def test_the_box_of_a_single_object_is_the_bound_of_its_alpha(index, monkeypatch):
    scene, alpha = black_and_white(WorldConfig(objects=(1.0,), repeats=0.0), index, monkeypatch)
    assert scene.objects[0].box_px == alpha_box(alpha)


@pytest.mark.parametrize("index", range(12))
def test_boxes_of_several_objects_bound_their_alpha(index, monkeypatch):
    config = WorldConfig(objects=(0.0, 0.5, 0.5), repeats=0.2, max_overlap=0.0)
    scene, alpha = black_and_white(config, index, monkeypatch)
    inside = np.zeros(alpha.shape, bool)
    for placed in scene.objects:
        x1, y1, x2, y2 = placed.box_px
        assert alpha_box(alpha[y1:y2, x1:x2]) == (0, 0, x2 - x1, y2 - y1)
        inside[y1:y2, x1:x2] = True
    assert not (alpha[~inside] > ALPHA_THRESHOLD).any()


def test_alpha_box_agrees_with_a_slow_search():
    rng = np.random.default_rng(0)
    for _ in range(50):
        alpha = (rng.random((9, 11)) < 0.08) * 255
        alpha[4, 5] = 255
        points = [(x, y) for y in range(9) for x in range(11) if alpha[y, x] > ALPHA_THRESHOLD]
        xs, ys = zip(*points, strict=True)
        assert alpha_box(alpha) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)


def test_paste_equals_the_float_formula():
    cutout = Cutouts(default_catalogue()).get(default_catalogue().objects[5], 40)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    height, width = cutout.keep_HW3.shape[:2]
    region = picture[3 : 3 + height, 7 : 7 + width].astype(np.float64)
    expected = cutout.colour_HW3 + region * cutout.keep_HW3 / 255
    paste(picture, cutout, 3, 7)
    error = np.abs(picture[3 : 3 + height, 7 : 7 + width] - expected)
    assert error.max() <= 0.5  # rounding only; measured 0.5


@pytest.mark.parametrize("size_px", [16, 40, 100, 128, 132, 300])
def test_colour_never_exceeds_alpha_so_that_pasting_cannot_wrap(size_px):
    cutouts = Cutouts(default_catalogue())
    for concept in default_catalogue().objects[:849:60]:
        cutout = cutouts.get(concept, size_px)
        assert max(cutout.keep_HW3.shape[:2]) == size_px
        assert (cutout.colour_HW3 + cutout.keep_HW3 <= 255).all()


def test_sizes_come_from_the_config():
    config = WorldConfig(sizes=((84, 112), (168, 84)))
    composer = Composer(config, default_catalogue())
    sizes = {composer.draw("train", np.random.default_rng(i)).hw for i in range(30)}
    assert sizes == {(84, 112), (168, 84)}


def test_any_size_is_not_bound_to_multiples_and_varies_in_shape():
    composer = Composer(WorldConfig(any_size=True), default_catalogue())
    sizes = [composer.draw("train", np.random.default_rng(i)).hw for i in range(60)]
    assert sum(h % 28 != 0 for h, _ in sizes) > 50
    ratios = [h / w for h, w in sizes]
    assert min(ratios) < 0.6
    assert max(ratios) > 1.6
    assert min(min(hw) for hw in sizes) >= 56


def test_objects_hardly_overlap_and_lie_inside():
    composer = Composer(WorldConfig(), default_catalogue())
    for i in range(200):
        scene = composer.draw("train", np.random.default_rng(i))
        taken = np.zeros(scene.hw, int)
        for placed in scene.objects:
            x1, y1, x2, y2 = placed.box_px
            assert 0 <= x1 < x2 <= scene.hw[1]
            assert 0 <= y1 < y2 <= scene.hw[0]
            taken[y1:y2, x1:x2] += 1
        for placed in scene.objects:
            x1, y1, x2, y2 = placed.box_px
            assert (taken[y1:y2, x1:x2] > 1).mean() <= 0.10


def test_backgrounds_keep_the_colour_they_are_called():
    composer = Composer(WorldConfig(), default_catalogue())
    palette = {name: np.asarray(rgb) for name, (_, rgb) in COLOURS.items()}
    rng = np.random.default_rng(0)
    for _ in range(300):
        pixels, name = composer.background((84, 112), rng)
        mean = pixels.reshape(-1, 3).mean(0)
        assert min(palette, key=lambda n: np.abs(palette[n] - mean).sum()) == name


def test_photographs_as_backgrounds(tmp_path):
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)).save(path)
    composer = Composer(WorldConfig(photos=(str(path),), photo_share=1.0), default_catalogue())
    scene = composer.draw("train", np.random.default_rng(1))
    assert scene.background == "photo"
    assert scene.pixels_HW3.std() > 20


def test_an_impossible_layout_is_an_error_with_the_numbers():
    config = WorldConfig(objects=(0.0, 0.0, 1.0), object_size=(0.9, 0.9), sizes=((84, 84),), repeats=1.0)
    composer = Composer(config, default_catalogue())
    with pytest.raises(ValueError, match=r"84 x 84 scene with object_size \(0\.9, 0\.9\)"):
        composer.draw("train", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concepts": 8}, "at least 9"),
        ({"concepts": 15, "objects": (1, 1, 1, 1)}, "at least 16"),
        ({"sizes": ((30, 84),)}, "at least 56"),
        ({"objects": ()}, "objects must be weights"),
        ({"object_size": (0.6, 0.3)}, "object_size"),
        ({"zh": 1.5}, "zh must lie between 0 and 1"),
        ({"photo_share": 0.5}, "photos is empty"),
        ({"turns": 0}, "turns"),
        ({"style": "poem"}, "style must be one of pretrain, chat"),
        ({"tasks": {"caption": 0.0}}, "tasks must be weights"),
        ({"video_frames": (3,)}, "video_frames"),
    ],
)
def test_config_errors_name_the_value(change, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**change)


def test_more_concepts_than_there_are():
    with pytest.raises(ValueError, match="only 849 objects"):
        Composer(WorldConfig(concepts=900), default_catalogue())
