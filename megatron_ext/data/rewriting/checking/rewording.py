"""A text's numbers in plain digits, each apart: dates, hours, scales (45 mil), shares, numbers in words (text2num)."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache

from text_to_num import alpha2digit

from megatron_ext.data.rewriting.checking.lexicon import Lexicon

_SPACES = "\u00a0\u202f\u2009 "
_CLOCK = re.compile(r"(?<![\w.,])(\d{1,2})(?:\s?[hH](\d{2})(?:\s?min)?|:(\d{2}))(?!\d)(?!-\d+(?![\d:hH]))")
_TO_THE_SECOND = re.compile(r"(?<![\w.,:])(\d{1,2})(?:\s?h\s?(\d{1,2})\s?min\s?(\d{1,2})\s?s(\d{1,3})?(?!\w)"
                            r"|:(\d{2}):(\d{2})(?:[.,](\d{1,3}))?(?![\d:]))", re.IGNORECASE)  # 1h59min30s8, 1:59:30
_HOURS = re.compile(r"(?<![\w.,])(\d{1,2})\s?[hH]s?(?!\w)")
_DATE = re.compile(r"(?<![\d/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/])")
_DAY_AND_MONTH = re.compile(r"(?<![\d/.,-])(0?[1-9]|[12]\d|3[01])/(0[1-9])(?![\d/])"
                            r"|(?<![\d/.,-])(1[3-9]|2\d|3[01])/(1[0-2])(?![\d/])")  # 30/06, 24/12; but 11/12
_SHORT_YEAR = re.compile(r"(?<![\d/.,])(\d{1,3}\.\d{3}|\d{4,5})/(\d{2})(?![\d/])")  # Lei 8.078/90, safra 2019/20
_CENTURY, _THIS_CENTURY = 2000, 40
_LIST_MARK = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|\(\d{1,2}\))(?=\s)", re.MULTILINE)
_LIST_MARK_INSIDE = re.compile(r"(\([^()]*\))|(?<=[\s;:])\d{1,2}\)(?=\s)")  # what is in brackets is none
_FRACTION = re.compile(r"(?<![\w.,/])(?:(\d+) )?(\d{1,2})/(\d{1,2})(?![\d/])")
_SHARED_SCALE_FACTOR = 10
"""De 180 para 218 bilhões; but 500 a 10 mil are 500."""
SIGN = r"[-−+]?(?:(?:R|US)?\$\s?|€\s?|£\s?)?"
_THOUSAND = Decimal(1000)
_MONTHS = 12


def without_list_marks(text: str) -> str:
    """The text without the numbers of its lists: `1.`, `(2)`, `3)`."""
    return _LIST_MARK_INSIDE.sub(lambda match: match[1] or " ", _LIST_MARK.sub(" ", text))


def words_in_digits(text: str, lexicon: Lexicon) -> str:
    """What `in_digits` gave, with numbers in words in digits, too."""
    return _with_parts(alpha2digit(text, lexicon.language, 0), lexicon)


def in_digits(text: str, lexicon: Lexicon) -> str:
    """Dates, hours and scaled numbers in plain digits, each number apart."""
    text = _DATE.sub(lambda match: _date(match, lexicon), text)
    text = _SHORT_YEAR.sub(lambda match: f"{match[1]} / {_year(match[2])}", text)
    hour = lexicon.hour
    text = _TO_THE_SECOND.sub(lambda match: _to_the_second(match, lexicon), text)
    text = _CLOCK.sub(lambda match: f"{Decimal(int(match[1])) + Decimal(int(match[2] or match[3])) / 60} {hour}", text)
    text = _HOURS.sub(lambda match: f"{match[1]} {hour}", text)
    for pattern, words in lexicon.rewordings:
        text = pattern.sub(words, text)
    scaled, shared, half, in_words, summed = _scale_patterns(lexicon)
    text = summed.sub(lambda match: _sum(match, lexicon), text)
    text = in_words.sub(lambda match: f"{match[1]} {match[4]}{match[2]}{match[3]} {match[4]}"
                        if _is_number(match[1], lexicon) and _is_number(match[3], lexicon) else match[0], text)
    text = shared.sub(lambda match: f"{match[1]} {match[4]}{match[2]}{match[3]} {match[4]}"
                      if _share_a_scale(value_of(match[1], lexicon), value_of(match[3], lexicon)) else match[0], text)
    text = half.sub(lambda match: f"{match[1]} <{lexicon.scales[match[1].lower()] // 2}>", text)
    return scaled.sub(lambda match: _plain(value_of(match[1], lexicon) * lexicon.scales[match[2].lower()]), text)


def _to_the_second(match: re.Match[str], lexicon: Lexicon) -> str:
    hours, *rest = match.groups("")
    minutes, seconds, parts = rest[:3] if match[2] else rest[3:]
    return f"{hours} {lexicon.hour}, {minutes} min, {seconds}{lexicon.decimal_mark}{parts or 0} s"


def _with_parts(text: str, lexicon: Lexicon) -> str:
    """`2 e meia` -> `2.5 horas`, `2000000 <500000>` -> `2500000`, `1 metro e 20` -> `1.20 metro`,
    `2 anos e meio` -> `2.5 anos`, shares -> percent.
    """
    text = re.sub(rf"(?<![\w.,])(\d{{1,2}})(?: horas?)? {lexicon.half_past.pattern}(?: horas?)?",
                  lambda match: f"{match[1]}.5 {lexicon.hour}", text)
    text = lexicon.hours_minutes.sub(
        lambda match: f"{Decimal(int(match[1])) + Decimal(int(match[2])) / 60} {lexicon.hour}", text)
    text = re.sub(r"(\d+) <(\d+)>", lambda match: str(int(match[1]) + int(match[2])), text)
    text = re.sub(rf"(?<![\w.,])({digits(lexicon)}) {lexicon.hundredths.pattern}",
                  lambda match: f"{_plain(value_of(match[1], lexicon) + Decimal(match[3]) / 100)} {match[2]}", text)
    text = lexicon.and_half.sub(lambda match: _with_half(match, lexicon), text)
    text = lexicon.share_turned.sub(lambda match: _percent(match[0], match[2], match[1]), text)
    return lexicon.share_of.sub(lambda match: _percent(match[0], match[1], match[2]), text)


def _with_half(match: re.Match[str], lexicon: Lexicon) -> str:
    """`2 anos e meio` -> `2.5 anos`; of what is no unit a half may be another thing's."""
    unit = match[0].split()[1]
    return f"{match[1]}.5 {unit}" if lexicon.units.get(unit.lower()) else match[0]


def without_fractions(text: str, lexicon: Lexicon) -> tuple[str, set[Decimal]]:
    """The text without 1/2, 3/4 (or 7/9, a date), and the values that these may stand for; 30/06 is a date."""
    if not lexicon.month_first:
        text = _DAY_AND_MONTH.sub(lambda match: f"{match[1] or match[3]} / {_month(match[2] or match[4], lexicon)} ",
                                  text)
    values: set[Decimal] = set()
    for whole, part, parts in (match.groups() for match in _FRACTION.finditer(text)):
        values |= {Decimal(part), Decimal(parts), Decimal(whole or 0)}
        share = Decimal(part) / Decimal(parts) if int(parts) else Decimal(part)
        values |= {int(whole or 0) + round(share, 2), 100 * share}
    return (_FRACTION.sub(" ", text) if values else text), values


def _sum(match: re.Match[str], lexicon: Lexicon) -> str:
    """`2 milhões e 500 mil` -> `2500000`; `2 mil e 3 mil` are two numbers."""
    scale, small = lexicon.scales[match[2].lower()], lexicon.scales[match[4].lower()] if match[4] else 1
    rest = value_of(match[3], lexicon) * small
    return _plain(value_of(match[1], lexicon) * scale + rest) if scale == small * 1000 and rest < scale else match[0]


def _is_number(word: str, lexicon: Lexicon) -> bool:
    return word.lower() not in lexicon.scales and alpha2digit(word, lexicon.language, 0).isdigit()


def _share_a_scale(one: Decimal, other: Decimal) -> bool:
    return one < _THOUSAND and one < _SHARED_SCALE_FACTOR * other and other < _SHARED_SCALE_FACTOR * one


def _date(match: re.Match[str], lexicon: Lexicon) -> str:
    day, month = (match[3], match[1]) if lexicon.month_first and int(match[1]) <= _MONTHS else (match[1], match[3])
    return f" {day} / {_month(month, lexicon)} / {_year(match[4])} "


def _year(digits: str) -> str:
    """90 -> 1990, 23 -> 2023."""
    if len(digits) != 2:
        return digits
    return str(_CENTURY + int(digits) - (0 if int(digits) < _THIS_CENTURY else 100))


def _month(digits: str, lexicon: Lexicon) -> str:
    return lexicon.months[int(digits) - 1] if 1 <= int(digits) <= len(lexicon.months) else digits


def _percent(written: str, part: str, whole: str) -> str:
    """`4 em cada 10` -> `40 %`."""
    if not 0 < int(part) <= int(whole) or int(whole) == 1:
        return written
    return f"{_plain(round(Decimal(100 * int(part)) / int(whole), 2))} %"


@cache
def _scale_patterns(lexicon: Lexicon) -> tuple[re.Pattern[str], ...]:
    """(45 mil, 180 para 218 bilhões, milhões e meio, vinte a trinta mil, 2 milhões e 500 mil)"""
    scales = "|".join(sorted(map(re.escape, lexicon.scales), key=len, reverse=True))
    number = rf"(?<![\w.,])({digits(lexicon)})"
    word, scale = r"([^\W\d_]+)", rf"[ \u00a0]({scales})(?![\w-])"  # not mil-réis
    patterns = (number + scale, rf"{number}({lexicon.shared_scale}{SIGN})({digits(lexicon)}){scale}",
                rf"(?<!\w)({scales}){lexicon.and_a_half}", rf"(?<=\s){word}({lexicon.shared_scale_words}){word}{scale}",
                rf"{number}{scale} {lexicon.sum_word} ({digits(lexicon)})(?:{scale}|(?= [^\W\d_]))")
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


@cache
def digits(lexicon: Lexicon) -> str:
    """The pattern of a number in digits: 45.000,5 or, where the decimal mark is a point, 45,000.5."""
    grouped, grouped_twice = _grouped(lexicon)
    return rf"(?:{grouped}|{grouped_twice}|\d+(?:[.,]\d+)*)"


def _grouped(lexicon: Lexicon) -> tuple[str, str]:
    """Thousands grouped by the language's own mark or spaces; and, twice and more, by what is its decimal mark."""
    decimal = re.escape(lexicon.decimal_mark)
    other = re.escape(_other_mark(lexicon))
    return (rf"\d{{1,3}}(?:[{other}{_SPACES}]\d{{3}})+(?!\d)(?:{decimal}\d+)?",
            rf"\d{{1,3}}(?:{decimal}\d{{3}}){{2,}}(?:{other}\d+)?")


def _other_mark(lexicon: Lexicon) -> str:
    return "." if lexicon.decimal_mark == "," else ","


@cache
def _shapes(lexicon: Lexicon) -> tuple[re.Pattern[str], re.Pattern[str]]:
    grouped, grouped_twice = _grouped(lexicon)
    return re.compile(grouped), re.compile(grouped_twice)


def value_of(digits: str, lexicon: Lexicon) -> Decimal:
    """Of digits whose thousands may be grouped: by the language's mark, spaces, or (twice and more) the other mark."""
    grouped, grouped_twice = _shapes(lexicon)
    if grouped.fullmatch(digits):
        digits = re.sub(rf"[{_SPACES}]", "", digits.replace(_other_mark(lexicon), "")).replace(",", ".")
    elif grouped_twice.fullmatch(digits):
        digits = digits.replace(lexicon.decimal_mark, "").replace(",", ".")
    elif digits.count(".") + digits.count(",") == 1:
        digits = digits.replace(",", ".")
    elif not digits.isdigit():
        digits = re.sub(r"\D", "", digits)  # 1.2.3, 10,11,12: a name of digits
    return Decimal(digits).normalize() + 0


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"
