"""Exam questions whose answer is a letter with a dot; examples come from other exams."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from evaluation.poeta.metrics import mean
from evaluation.poeta.raw import RawData, Row
from evaluation.poeta.task import Aggregation, Cloze, Document, Loaded, Metrics, Task, cloze

LETTERS = "ABCDE"
_ANSWER_FORMS = [re.compile(pattern) for pattern in (r"([A-E])\.", r"([A-Ea-e])\)", r"([A-E])")]
ENEM_AREAS = ("languages", "human-sciences", "natural-sciences", "mathematics")
LONGEST_ENEM_QUESTIONS = frozenset({
    "2013_59", "2010_121", "2009_132", "2009_133", "2016_2__104",
    "2009_130", "2015_108", "2009_131", "2011_128", "2014_135",
})


def find_letter(text: str, choices: Sequence[str]) -> str:
    """The answer in an output, as `L.`; empty where there is none.

    The last letter in the first of these forms that occurs: `A.`, then `a)`, then any capital A to E, inside words
    too. Without any, the text may equal a choice.
    """
    for form in _ANSWER_FORMS:
        if found := form.findall(text):
            return f"{found[-1].upper()}."
    return f"{LETTERS[list(choices).index(text)]}." if text in choices else ""


def mean_of(*names: str) -> dict[str, Aggregation]:
    """Plain means of the named metrics."""
    return dict.fromkeys(names, mean)


class ExamTask(Task):
    """Common ground: scoring, and means by year, subject and the like."""

    strips_output: ClassVar[bool] = True

    def score(self, document: Document, output: str) -> Metrics:
        """Accuracy, also under each of the document's groups."""
        text = output.strip() if self.strips_output else output
        prediction = find_letter(text, document.fields["choices"])
        accuracy, unknown = float(prediction == document.gold), float(not prediction)
        return {"acc": accuracy, **dict.fromkeys(document.fields["groups"], accuracy), "unknown_pred": unknown,
                "invalid": unknown}


class HubExam(ExamTask):
    """Exams on the hub: questions with marked alternatives, without those that need an image or were annulled."""

    years: ClassVar[frozenset[str] | None] = None
    """Exams that are taken; None: all."""
    flags: ClassVar[tuple[str, ...]]
    """Boolean fields that make groups."""

    def load(self, raw: RawData) -> Loaded:
        """Documents in the order of the data set; the pool is the same list."""
        documents = [self.document(row) for row in raw.split(self.spec.splits[0]) if self.is_usable(row)]
        return Loaded(documents, documents)

    def is_usable(self, row: Row) -> bool:
        """Whether a question is taken."""
        year_fits = self.years is None or _id_part(row, 1) in self.years
        return year_fits and row["answer"] is not None and not row["has_associated_images"]

    def document(self, row: Row) -> Document:
        """One question."""
        choices = [self.option(letter, text) for letter, text in zip(LETTERS, row["alternatives"], strict=False)]
        question = f"Enunciado: {self.clean(row['question'])}"
        text = "\n".join([question, "Alternativas:", *choices, "Resposta:"])
        texts = [choice.removeprefix(f"{letter}.") for letter, choice in zip(LETTERS, choices, strict=False)]
        year = _id_part(row, 1)
        groups = [year, *(flag for flag in self.flags if row[flag]), *self.other_groups(row)]
        return Document(row["id"], text, f" {row['answer'].upper()}.", year, letters_of(choices),
                        cloze(f"{question}\nResposta:", texts), {"choices": choices, "groups": groups})

    def clean(self, text: str) -> str:
        """A text as it stands in the prompt."""
        raise NotImplementedError

    def option(self, letter: str, text: str) -> str:
        """An alternative with its mark turned into `L.`, wherever the mark occurs."""
        raise NotImplementedError

    def other_groups(self, row: Row) -> Iterable[str]:
        """Groups that are no flags."""
        raise NotImplementedError


class Bluex(HubExam):
    """Entrance exams of USP and UNICAMP."""

    years = frozenset(map(str, range(2018, 2024)))
    flags = ("BK",)
    aggregations: ClassVar[Mapping[str, Aggregation]] = mean_of(
        "acc", "unknown_pred", "BK", "USP", "UNICAMP", *map(str, range(2018, 2025)),
        "portuguese", "mathematics", "history", "physics", "chemistry", "geography", "biology", "english", "philosophy",
    )

    def clean(self, text: str) -> str:
        """See `clean_spaces`."""
        return clean_spaces(text)

    def option(self, letter: str, text: str) -> str:
        """Alternatives are marked `a)`."""
        return clean_spaces(text).replace(f"{letter.lower()})", f"{letter}.")

    def other_groups(self, row: Row) -> Iterable[str]:
        """University and subjects."""
        return [_id_part(row, 0), *(row.get("subject") or [])]


class Poscomp(HubExam):
    """Entrance exam of graduate schools of computing."""

    flags = ("MR", "CR")
    subjects = frozenset({"computer_technology", "mathematics", "computer_fundamentals"})
    aggregations: ClassVar[Mapping[str, Aggregation]] = mean_of(
        "acc", "unknown_pred", "MR", "CR", *sorted(subjects), "2022", "2023",
    )

    def clean(self, text: str) -> str:
        """Only white space at the beginning goes; line feeds inside stay."""
        return text.lstrip()

    def option(self, letter: str, text: str) -> str:
        """Alternatives are marked `A)`."""
        return text.lstrip().replace(f"{letter})", f"{letter}.")

    def other_groups(self, row: Row) -> Iterable[str]:
        """Subjects."""
        return [subject for subject in row.get("subject") or [] if subject in self.subjects]


class Enem(ExamTask):
    """National exam of secondary education, 2009 to 2017."""

    strips_output = False
    aggregations: ClassVar[Mapping[str, Aggregation]] = mean_of(
        "acc", *map(str, range(2009, 2018)), "2016_2_", "unknown_pred",
    )

    def load(self, raw: RawData) -> Loaded:
        """All questions; the longest ones are no examples."""
        documents = self.past_exams(raw)
        return Loaded(documents, short_questions(documents))

    def past_exams(self, raw: RawData) -> list[Document]:
        """The questions of the XML files that need neither images nor formulas."""
        return [document for name in self.spec.files for document in read_enem_xml(raw.path(name), exam_of(name))]


class Enem2022(Enem):
    """The exam of 2022; examples come from the earlier ones."""

    aggregations: ClassVar[Mapping[str, Aggregation]] = mean_of("acc", "2022", *ENEM_AREAS, "unknown_pred")

    def load(self, raw: RawData) -> Loaded:
        """Questions that need neither images nor formulas, with their text as it is."""
        rows = [row for row in raw.json(self.spec.evaluation_file) if not row["IU"] and not row["ML"]]
        return Loaded([self.document(row) for row in rows], short_questions(self.past_exams(raw)))

    def document(self, row: Row) -> Document:
        """One question; its area follows from its number."""
        number = int(row["id"].split("_")[-1])
        groups = [row["exam"], ENEM_AREAS[math.ceil(number / 45) - 1]]
        return Document(row["id"], enem_text(row["context"], row["question"], row["options"]),
                        f" {row['label'].upper()}.", row["exam"], letters_of(row["options"]),
                        enem_cloze(row["context"], row["question"], row["options"]),
                        {"choices": row["options"], "groups": groups})


def read_enem_xml(path: Path, exam: str) -> list[Document]:
    """The questions of one XML file without image, formula or chemical notation."""
    documents = []
    for question in xml.etree.ElementTree.parse(path).getroot():
        if any(question.get(flag) != "No" for flag in ("IC", "MR", "CE")):
            continue
        options = question.findall("answers/option")
        choices = [option.text and clean_spaces(option.text) for option in options]
        answer = next(option.get("id") for option in options if option.get("correct") == "Yes")
        header, statement = (clean_spaces(question.findtext(part)) for part in ("header", "statement"))
        text = enem_text(header, statement, choices)
        documents.append(Document(f"{exam}_{question.get('id')}", text, f" {answer}.", exam, letters_of(choices),
                                  enem_cloze(header, statement, choices), {"choices": choices, "groups": [exam]}))
    return documents


def enem_text(header: str, statement: str, choices: Sequence[str | None]) -> str:
    """A question; an empty option prints as `None`, as in the official harness."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([*_enem_question(header, statement), "Alternativas:", *options, "Resposta:"])


def enem_cloze(header: str, statement: str, choices: Sequence[str | None]) -> Cloze | None:
    """A question without its options."""
    return cloze("\n".join([*_enem_question(header, statement), "Resposta:"]), choices)


def _enem_question(header: str, statement: str) -> list[str]:
    return [f"Cabeçalho: {header}", f"Enunciado: {statement}"]


def letters_of(choices: Sequence[str | None]) -> tuple[str, ...]:
    """The answers that choices offer."""
    return tuple(f" {letter}." for letter, _ in zip(LETTERS, choices, strict=False))


def exam_of(name: str) -> str:
    """`data/enem/2016_2_-1.xml` is of the exam `2016_2_`."""
    return Path(name).stem.split("-")[0]


def short_questions(documents: Iterable[Document]) -> list[Document]:
    """Documents without the ten longest."""
    return [document for document in documents if document.id not in LONGEST_ENEM_QUESTIONS]


def clean_spaces(text: str) -> str:
    """Line feeds with the space around them become one space, repeated white space one, none at the beginning."""
    text = re.sub(r"\s*\n+\s*", " ", text)
    text = re.sub(r"(\s)\1+", " ", text)
    return re.sub(r"^\s+", "", text)


def _id_part(row: Row, index: int) -> str:
    """Parts of an id such as UNICAMP_2019_1."""
    return row["id"].split("_")[index]
