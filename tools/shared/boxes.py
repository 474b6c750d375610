"""Objects drawn into images: masks and boxes in the colours of their classes, names and scores."""

import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from tasks.segmentation.labels import palette
from utils.lettering import fallback, letters
from utils.text import escaped

OPACITY = 0.5  # of a mask
SURE = 0.3  # score from which a detection is drawn, unless something else is asked for
SMALLEST = 256  # pixels of the longer side: smaller images are enlarged, since names would cover them
LINE, LETTER = 1 / 250, 1 / 40  # of the longer side: width of a line, height of the letters
LEAST_LETTER = 11  # pixels


def draw_objects(image, boxes, labels, names, scores=None, masks=None):
    """The RGB PIL image with objects, surest on top; a small one is enlarged by a whole factor.

    boxes: (n, 4), x1 y1 x2 y2 in its pixels; labels: n integers; names: of all classes; scores: n, falling; masks: a
    sequence of n boolean (H, W), of which one is taken at a time. With a single class each object has its own colour.
    """
    factor = max(1, -(-SMALLEST // max(image.size)))
    image = image.convert("RGB").resize([factor * side for side in image.size], Image.Resampling.NEAREST)
    colours = palette(len(names))[np.asarray(labels, dtype=int)] if len(names) > 1 else palette(len(boxes))
    order = range(len(boxes) - 1, -1, -1)
    if masks is not None:
        pixels = np.array(image)
        for number in order:
            inside = np.asarray(masks[number], dtype=bool).repeat(factor, 0).repeat(factor, 1)
            pixels[inside] = (1 - OPACITY) * pixels[inside] + OPACITY * colours[number] + 0.5
        image = Image.fromarray(pixels)
    draw, width = ImageDraw.Draw(image), max(2, round(LINE * max(image.size)))
    for number in order:
        corners, colour = (factor * np.asarray(boxes[number], dtype=float)).tolist(), tuple(colours[number].tolist())
        draw.rectangle(upright(corners), outline=colour, width=width)
        score = "" if scores is None else f" {float(scores[number]):.2f}"
        write(draw, names[int(labels[number])] + score, corners, colour)
    return image


def upright(corners):
    """x1 y1 x2 y2 where no side is negative, which PIL refuses."""
    x1, y1, x2, y2 = corners
    return x1, y1, max(x1, x2), max(y1, y2)


def write(draw, text, corners, colour):
    """Text on a ground of this colour above a box, or in it where there is no room above."""
    wide, high = draw.im.size
    font, text = lettering(text, max(LEAST_LETTER, round(LETTER * max(wide, high))))
    _, _, width, height = draw.textbbox((0, 0), text, font=font)
    x, y = min(max(0, corners[0]), max(0, wide - width - 2)), corners[1] - height - 2
    y = y if y >= 0 else max(0, corners[1])
    draw.rectangle((x, y, x + width + 2, y + height + 2), fill=colour)
    light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    draw.text((x + 1, y), text, font=font, fill="black" if light else "white")


def lettering(text, size):
    """(a font of so many pixels, the text as it is drawn in it): one with its letters, codes for what that lacks."""
    path = findfont(None)
    lacking = [letter for letter in text if ord(letter) not in letters(path)]
    if lacking and fallback(lacking[0]):
        path = findfont(FontProperties(family=fallback(lacking[0])))
    shown = "".join(letter if ord(letter) in letters(path) else escaped(letter) for letter in text)
    return ImageFont.truetype(path, size), shown
