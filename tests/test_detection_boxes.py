"""Objects drawn into images."""

import numpy as np
import pytest
from PIL import Image

from tasks.segmentation.labels import palette
from tools.shared.boxes import LEAST_LETTER, OPACITY, draw_objects, lettering

GREY = 100


def grey(width, height):
    return Image.new("RGB", (width, height), (GREY,) * 3)


def pixels(*arguments, **options):
    return np.asarray(draw_objects(*arguments, **options)).astype(float)


def test_masks_and_boxes_have_the_colours_of_their_classes():
    masks = np.zeros((2, 300, 400), dtype=bool)
    masks[0, 100:140, 60:90] = masks[1, 200:290, 200:300] = True
    boxes = [[50, 90, 100, 150], [200, 200, 299, 289]]
    found = pixels(grey(400, 300), boxes, [2, 1], ["a", "b", "c"], scores=[0.9, 0.4], masks=masks)
    assert found.shape == (300, 400, 3)
    for label, y, x in ((2, 110, 70), (1, 250, 250)):
        assert np.abs(found[y, x] - (1 - OPACITY) * GREY - OPACITY * palette(3)[label]).max() <= 1
    for label, y, x in ((2, 120, 50), (2, 150, 70), (1, 250, 299)):
        assert found[y, x].tolist() == palette(3)[label].tolist()
    assert found[120, 95].tolist() == found[10, 10].tolist() == [GREY] * 3
    words = found[70:90, 50:150]
    assert (words == palette(3)[2]).all(2).any()
    assert (words.min(2) > 200).any()


def test_the_surest_lies_on_top():
    whole = np.ones((2, 300, 300), dtype=bool)
    found = pixels(grey(300, 300), [[0, 0, 299, 299]] * 2, [0, 1], ["a", "b"], scores=[0.9, 0.8], masks=whole)
    assert found[299, 150].tolist() == palette(2)[0].tolist()


def test_objects_of_a_single_class_differ_in_colour():
    found = pixels(grey(300, 300), [[10, 100, 90, 200], [110, 100, 190, 200]], [0, 0], ["person"])
    assert found[150, 10].tolist() != found[150, 110].tolist()


def test_small_images_are_enlarged_with_their_objects():
    mask = np.zeros((1, 30, 50), dtype=bool)
    mask[0, 20:25, 30:40] = True
    found = pixels(grey(50, 30), [[30, 20, 40, 25]], [0], ["a", "b"], masks=mask)
    assert found.shape == (180, 300, 3)
    assert found[145, 236].tolist() == found[130, 200].tolist() == (0.5 * GREY + 0.5 * palette(2)[0]).tolist()
    assert found[155, 236].tolist() == [GREY] * 3


@pytest.mark.parametrize("box", [[-20, -30, 10, 5], [290, 290, 400, 500], [50, 50, 50, 50], [60, 60, 50, 50]])
def test_any_box_and_any_name(box):
    for name in ("a" * 300, "猫\x1b", ""):
        draw_objects(grey(300, 300), [box], [0], [name], scores=[0.5])


def test_nothing_found_is_the_image():
    for masks in (None, []):
        assert (pixels(grey(300, 300), np.zeros((0, 4)), [], ["a"], scores=[], masks=masks) == GREY).all()


def test_letters_that_no_font_has_are_codes():
    assert lettering("a\x1bß", LEAST_LETTER)[1] == "a\\x1bß"
