"""How colours look to readers with a colour-vision deficiency, and how far apart two colours look (numpy alone).

Deficiencies of full severity by the matrices of Machado, Oliveira & Fernandes, "A Physiologically-based Model for
Simulation of Color Vision Deficiency", IEEE TVCG 15(6), 2009, severity 1.0, applied to linear RGB. Distances by
CIEDE2000 as in Sharma, Wu & Dalal, "The CIEDE2000 Color-Difference Formula", Color Research & Application 30(1), 2005.
"""

import numpy as np

DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}
_TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                    [0.0193339, 0.1191920, 0.9503041]])
_WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(colour):
    """`#rrggbb` -> linear RGB in [0, 1]."""
    value = np.array([int(colour[place:place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def seen(colour, deficiency):
    """CIELAB of a colour as a reader with the deficiency sees it."""
    xyz = _TO_XYZ @ np.clip(DEFICIENCIES[deficiency] @ linear(colour), 0, 1) / _WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(colour):
    """WCAG contrast ratio with white."""
    return 1.05 / (_TO_XYZ[1] @ linear(colour) + 0.05)


def ciede2000(one, other):
    """Distance of two CIELAB colours."""
    lightness, a, b = np.transpose([one, other])
    chroma = np.hypot(a, b).mean()
    g = 0.5 * (1 - np.sqrt(chroma ** 7 / (chroma ** 7 + 25.0 ** 7)))
    a = (1 + g) * a
    chromas, hues = np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360
    turn = (hues[1] - hues[0] + 180) % 360 - 180 if chromas.prod() else 0.0
    hue = (hues[0] + turn / 2) % 360 if chromas.prod() else hues.sum()
    d_lightness, d_chroma = np.diff(lightness)[0], np.diff(chromas)[0]
    d_hue = 2 * np.sqrt(chromas.prod()) * np.sin(np.radians(turn / 2))
    middle, chroma = lightness.mean(), chromas.mean()
    t = (1 - 0.17 * np.cos(np.radians(hue - 30)) + 0.24 * np.cos(np.radians(2 * hue))
         + 0.32 * np.cos(np.radians(3 * hue + 6)) - 0.20 * np.cos(np.radians(4 * hue - 63)))
    s_l = 1 + 0.015 * (middle - 50) ** 2 / np.sqrt(20 + (middle - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = (-2 * np.sqrt(chroma ** 7 / (chroma ** 7 + 25.0 ** 7))
                * np.sin(np.radians(60 * np.exp(-((hue - 275) / 25) ** 2))))
    parts = np.array([d_lightness / s_l, d_chroma / s_c, d_hue / s_h])
    return float(np.sqrt(parts @ parts + rotation * parts[1] * parts[2]))
