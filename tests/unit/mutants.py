"""Settings files that are wrong in one place: what a tired hand does to a good file."""

import json
from dataclasses import dataclass

from hypothesis import strategies as st

KINDS = ("misspell", "retype", "duplicate", "remove", "nest", "infinity", "unicode")
ODD_VALUES = (None, True, "", "text", "7", 0, -1, 1.5, [], {}, [1], {"a": 1}, [[]], [None], 10**30, "null", "ação",
              "~/x", "a\u202eb", "\ud800", "a\0b", "x" * 5000, "../..", "/", "@[#'\"")
ODD_NUMBERS = (float("inf"), float("-inf"), float("nan"))
ODD_ENDINGS = ("\u0301", "ﬁ", "\u200b", "🙂", " ", ".", "\n", "é", "'", "\ud800")


@dataclass(frozen=True)
class Mutant:
    kind: str
    keys: tuple
    """Where it was changed, in the keys of the good file."""
    new_key: str
    """Its key now."""
    old_value: object
    text: str
    """The file."""

    @property
    def names(self):
        """What a message may call the place by: its key as it was or is, the section that it is in, or the name that it
        was and that others refer to."""
        names = {str(key) for key in (*self.keys, self.new_key) if not isinstance(key, int)}
        return names | ({self.old_value} if isinstance(self.old_value, str) else set())


@st.composite
def mutants(draw, values):
    """A wrong copy of a good file's values."""
    keys = draw(st.sampled_from(sorted(paths(values), key=str)))
    kind = draw(st.sampled_from(KINDS))
    key, new_key, changes = keys[-1], keys[-1], {}
    if kind == "misspell":
        new_key = draw(misspelt(str(key)))
    elif kind == "unicode" and draw(st.booleans()):
        new_key = str(key) + draw(st.sampled_from(ODD_ENDINGS))
    elif kind == "unicode":
        changes["value"] = draw(st.sampled_from(("a", ""))) + draw(st.sampled_from(ODD_ENDINGS))
    elif kind == "retype":
        changes["value"] = draw(st.sampled_from(ODD_VALUES))
    elif kind == "nest":
        changes["value"] = {draw(st.sampled_from((str(key), "inner"))): at(values, keys)}
    elif kind == "infinity":
        changes["value"] = draw(st.sampled_from(ODD_NUMBERS))
    if isinstance(key, int):  # of a list: its place has no name
        new_key = key
    return Mutant(kind, keys, new_key, at(values, keys), dump(values, keys, kind, new_key, changes))


@st.composite
def misspelt(draw, key):
    place = draw(st.integers(0, len(key) - 1))
    letter = draw(st.sampled_from("aeiz_-"))
    return draw(st.sampled_from((key[:place] + key[place + 1:], key[:place] + letter + key[place:],
                                 key[:place] + letter + key[place + 1:], key.upper(), key.replace("_", "-"))))


def paths(values, above=()):
    """The keys of every value in nested sections and lists."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*above, key)
        if isinstance(value, (dict, list)):
            yield from paths(value, (*above, key))


def at(values, keys):
    for key in keys:
        values = values[key]
    return values


def dump(value, keys, kind, new_key, changes):
    """JSON, which is YAML, with one place changed."""
    if isinstance(value, (dict, list)) and keys is not None:
        items = []
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if key != keys[0]:
                items.append((key, dump(inner, None, kind, new_key, changes)))
            elif len(keys) > 1:
                items.append((key, dump(inner, keys[1:], kind, new_key, changes)))
            elif kind != "remove":
                text = dump(changes.get("value", inner), None, kind, new_key, changes)
                items += [(new_key, text)] * (2 if kind == "duplicate" else 1)
        if isinstance(value, list):
            return f"[{', '.join(text for _, text in items)}]"
        return "{" + ", ".join(f"{json.dumps(str(key))}: {text}" for key, text in items) + "}"
    if (isinstance(value, float) and value in ODD_NUMBERS) or value != value:
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)
