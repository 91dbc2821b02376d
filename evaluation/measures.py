"""What is measured: its unit, which direction is better, how it is printed, and what is resampled to tell its error."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A number that models are compared by; wording, tables, colours, intervals and tests follow from it."""

    name: str
    """Key in files."""
    unit: str
    """As it is printed after a number."""
    higher_is_better: bool
    decimals: int
    """Digits after the point that are printed."""
    low: float | None
    """Lowest value that is possible; None: there is no such bound, or each task has its own."""
    high: float | None
    """Highest value that is possible."""
    chance: float | None
    """What guessing gives."""
    cluster: str
    """What is resampled: one noun in the singular. Items of one cluster are no independent evidence."""

    def is_better(self, difference: float) -> bool:
        """Whether the first of two values is the better one, given first - second."""
        return difference > 0 if self.higher_is_better else difference < 0

    def signed(self, value: float) -> str:
        """A number with its sign, with a true minus: +0.6, −3.1."""
        text = f"{value:+.{self.decimals}f}"
        return (text[1:] if float(text) == 0 else text).replace("-", "−")

    def amount(self, value: float) -> str:
        """The size of a difference, without its sign."""
        return f"{abs(value):.{self.decimals}f}"

    def plain(self, value: float) -> str:
        """A value."""
        return f"{value:.{self.decimals}f}".replace("-", "−")


NPM = Measure("npm", "NPM", higher_is_better=True, decimals=1, low=None, high=100.0, chance=0.0, cluster="item")
"""Normalised preferred metric of PoETa V2."""
BITS_PER_BYTE = Measure("bits_per_byte", "bits a byte", higher_is_better=False, decimals=3, low=0.0, high=None,
                        chance=None, cluster="document")
"""Held-out loss per byte of text; a document and all that was made of it are one cluster."""
GOLD_BITS_PER_BYTE = Measure("gold_bits_per_byte", "bits a byte of gold answers", higher_is_better=False, decimals=3,
                             low=0.0, high=None, chance=None, cluster="item")
"""Loss of the right answers, given the official prompts."""
CLOZE_BITS_PER_BYTE = Measure("cloze_bits_per_byte", "bits a byte of right options", higher_is_better=False, decimals=3,
                              low=0.0, high=None, chance=None, cluster="item")
"""Loss of the right options' texts, which complete the questions without their options."""
GOLD_ACCURACY = Measure("gold_accuracy", "points of likeliest answers", higher_is_better=True, decimals=1, low=0.0,
                        high=100.0, chance=None, cluster="item")
"""Percent of items whose right answer is the likeliest of the options; chance is each task's own."""
CLOZE_ACCURACY = Measure("cloze_accuracy", "points of likeliest texts", higher_is_better=True, decimals=1, low=0.0,
                         high=100.0, chance=None, cluster="item")
"""Percent of items in cloze form whose right option is the likeliest per byte; chance is each task's own."""
SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "mc1", "mc2")
"""Metrics of lm-evaluation-harness that are shares of right items; they are told in percent."""
_HARNESS = "harness:"
_KNOWN: dict[str, tuple[float | None, float | None, int, str]] = {
    "bits_per_byte": (0.0, None, 3, "bits a byte"), "byte_perplexity": (1.0, None, 3, "of byte_perplexity"),
    "word_perplexity": (1.0, None, 2, "of word_perplexity"), "perplexity": (1.0, None, 2, "of perplexity"),
    "mcc": (-1.0, 1.0, 3, "of mcc"), "brier_score": (0.0, 2.0, 3, "of brier_score"),
    "bleu": (0.0, 100.0, 1, "points of bleu"), "chrf": (0.0, 100.0, 1, "points of chrf"),
    "ter": (0.0, None, 1, "points of ter")}
"""Metric of the harness -> lowest and highest value, digits, unit."""


def harness_measure(metric: str, higher_is_better: bool) -> Measure:
    """A metric of lm-evaluation-harness; of one that is not known here no bounds are. Chance is each task's own."""
    shares = (0.0, 100.0, 1, f"points of {metric}")
    low, high, decimals, unit = shares if metric in SHARES else _KNOWN.get(metric, (None, None, 3, f"of {metric}"))
    return Measure(f"{_HARNESS}{metric}", unit, higher_is_better, decimals, low, high, chance=None, cluster="item")


LIKELIHOODS = (CLOZE_BITS_PER_BYTE, GOLD_BITS_PER_BYTE, CLOZE_ACCURACY, GOLD_ACCURACY)
MEASURES = {measure.name: measure for measure in (NPM, BITS_PER_BYTE, *LIKELIHOODS)}


def printed_as(name: str) -> Measure:
    """The measure of a key in files; of a metric of the harness only how it is printed is right."""
    return MEASURES.get(name) or harness_measure(name.removeprefix(_HARNESS), higher_is_better=True)
