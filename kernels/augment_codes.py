"""Numbers of the operations as constants for kernels: the table of data/device/ops.py (a test compares them)."""

import triton.language as tl

AUTO_CONTRAST = tl.constexpr(0)
EQUALIZE = tl.constexpr(1)
INVERT = tl.constexpr(2)
ROTATE = tl.constexpr(3)
POSTERIZE = tl.constexpr(4)
SOLARIZE = tl.constexpr(5)
SOLARIZE_ADD = tl.constexpr(6)
COLOR = tl.constexpr(7)
CONTRAST = tl.constexpr(8)
BRIGHTNESS = tl.constexpr(9)
SHARPNESS = tl.constexpr(10)
SHEAR_X = tl.constexpr(11)
SHEAR_Y = tl.constexpr(12)
TRANSLATE_X = tl.constexpr(13)
TRANSLATE_Y = tl.constexpr(14)
