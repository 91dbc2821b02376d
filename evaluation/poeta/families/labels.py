"""Tasks whose answer is one of a few labels and must equal it as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from evaluation.poeta.metrics import macro_f1, mean, weighted_f1
from evaluation.poeta.raw import RawData, Row
from evaluation.poeta.task import Aggregation, Cloze, Document, Loaded, Metrics, Task, cloze

_MARKUP = re.compile(r"http|lt\s*;|gt\s*;")
_REPEATED_SPACE = re.compile(r"(\s)\1*")
_LINE_BREAK_TAG = re.compile(r"<br />|<BR />|<Br />")


class LabelTask(Task):
    """Common ground: a template, a label field, equality after stripping and lower-casing."""

    template: ClassVar[str]
    """Format string over the fields of a row."""
    label_field: ClassVar[str] = "label"
    labels: ClassVar[Mapping[Any, str]]
    """Value of the label field -> answer."""
    accuracy_scale: ClassVar[float] = 1.0
    """What a right answer counts: 1, or 100 where the official metric is in percent."""
    ignore_case: ClassVar[bool] = True

    def rows(self, raw: RawData) -> tuple[list[Row], list[Row]]:
        """Rows of the few-shot pool and of the evaluation."""
        pool, evaluation = self.spec.splits
        return raw.split(pool), raw.split(evaluation)

    def load(self, raw: RawData) -> Loaded:
        """Documents of both splits."""
        pool, evaluation = self.rows(raw)
        return Loaded([self.document(row) for row in evaluation], [self.document(row) for row in pool])

    def document(self, row: Row) -> Document:
        """One row as a document."""
        return Document(row.get("id"), self.template.format_map(row), f" {self.labels[row[self.label_field]]}",
                        options=self.options, cloze=self.cloze(row))

    @property
    def options(self) -> tuple[str, ...]:
        """The labels as answers."""
        return tuple(f" {label}" for label in self.labels.values())

    def cloze(self, row: Row) -> Cloze | None:
        """A row in cloze form; labels stand for themselves and have none."""
        return None

    def score(self, document: Document, output: str) -> Metrics:
        """Accuracy, and [prediction, gold] for each F1 that the task aggregates."""
        prediction, gold = self.normalise(output), self.normalise(document.target)
        f1_names = [name for name in self.aggregations if name.startswith("f1")]
        return {
            "acc": self.accuracy_scale * (prediction == gold),
            **{name: [prediction, gold] for name in f1_names},
            "invalid": float(prediction not in map(self.normalise, self.labels.values())),
        }

    def normalise(self, answer: str) -> str:
        """The form in which answers are compared."""
        return answer.strip().lower() if self.ignore_case else answer.strip()


class AssinRte(LabelTask):
    """Does a sentence follow from another?"""

    template = 'Pergunta: Dado que "{premise}", é verdade que "{hypothesis}"?\nResposta:'
    label_field = "entailment_judgment"
    labels: ClassVar = {0: "Não", 1: "Sim"}
    accuracy_scale = 100.0
    aggregations: ClassVar[Mapping[str, Aggregation]] = {"acc": mean, "f1": macro_f1}


class TweetSentBr(LabelTask):
    """Sentiment of a tweet."""

    template = 'Mensagem: "{text}".\nResposta:'
    label_field = "sentiment"
    labels: ClassVar = {"-1": "negativa", "0": "neutra", "1": "positiva"}
    accuracy_scale = 100.0
    aggregations: ClassVar[Mapping[str, Aggregation]] = {
        "acc": mean, "f1-macro": macro_f1, "f1-weighted": weighted_f1,
    }

    def rows(self, raw: RawData) -> tuple[list[Row], list[Row]]:
        """Records with a text and a sentiment; each run of one same white-space character becomes one space."""
        records = [
            {**record, "text": _REPEATED_SPACE.sub(" ", record["text"])}
            for record in raw.json(self.spec.files[0]).values()
            if record["text"] is not None and record["sentiment"] != "-"
        ]
        return ([record for record in records if record["group"] == "train"],
                [record for record in records if record["group"] == "test"])


class AgNews(LabelTask):
    """Topic of a news item."""

    template = "Título: {title}\nTexto: {text}\nCategoria:"
    labels: ClassVar = {0: "Mundo", 1: "Esportes", 2: "Negócios", 3: "Tecnologia"}
    accuracy_scale = 100.0
    aggregations: ClassVar[Mapping[str, Aggregation]] = {
        "acc": mean, "f1-macro": macro_f1, "f1-weighted": weighted_f1,
    }

    def rows(self, raw: RawData) -> tuple[list[Row], list[Row]]:
        """Examples are short and without traces of markup."""
        pool, evaluation = super().rows(raw)
        return [row for row in pool if len(row["text"]) < 298 and not _MARKUP.search(row["text"])], evaluation


class BoolQ(LabelTask):
    """Does a passage answer a question with yes?"""

    template = "Pergunta: {question}\nContexto: {passage}\nResposta:"
    label_field = "answer"
    labels: ClassVar = {False: "não", True: "sim"}

    def rows(self, raw: RawData) -> tuple[list[Row], list[Row]]:
        """Examples are short; evaluated passages are cut."""
        pool, evaluation = super().rows(raw)
        return ([row for row in pool if len(row["passage"]) < 749],
                [{**row, "passage": row["passage"][:1169]} for row in evaluation])


class Sst2(LabelTask):
    """Sentiment of a phrase of a film review."""

    template = "Crítica: {text}\nAvaliação:"
    labels: ClassVar = {0: "negativa", 1: "positiva"}


class Imdb(Sst2):
    """Sentiment of a film review."""

    def rows(self, raw: RawData) -> tuple[list[Row], list[Row]]:
        """Examples are short, evaluated reviews are cut; then some spellings of the line break tag go."""
        pool, evaluation = super().rows(raw)
        pool = [row for row in pool if len(row["text"]) < 1544]
        evaluation = [{**row, "text": row["text"][:2095]} for row in evaluation]
        return _without_line_break_tags(pool), _without_line_break_tags(evaluation)


class Massive(LabelTask):
    """Domain of a spoken command."""

    template = "Comando: {utt}\nCategoria:"
    label_field = "scenario"
    labels: ClassVar = {
        "general": "geral", "datetime": "data/hora", "recommendation": "recomendação", "takeaway": "entrega",
        "audio": "áudio", "calendar": "calendário", "transport": "transporte", "lists": "listas", "weather": "clima",
        "iot": "IoT", "play": "tocar/jogar", "cooking": "culinária", "social": "social", "email": "email",
        "qa": "perguntas e respostas", "alarm": "alarme", "news": "notícias", "music": "música",
    }
    accuracy_scale = 100.0
    ignore_case = False
    aggregations: ClassVar[Mapping[str, Aggregation]] = {
        "acc": mean, "f1-macro": macro_f1, "f1-weighted": weighted_f1,
    }

    def rows(self, raw: RawData) -> tuple[list[Row], list[Row]]:
        """The train and test partitions."""
        rows = raw.json_lines(self.spec.files[0])
        return ([row for row in rows if row["partition"] == "train"],
                [row for row in rows if row["partition"] == "test"])


class StoryCloze(LabelTask):
    """Which ending fits a story?"""

    template = (
        "Passagem 1: {input_sentence_1}\nPassagem 2: {input_sentence_2}\n"
        "Passagem 3: {input_sentence_3}\nPassagem 4: {input_sentence_4}\n"
        "Desfecho 1: {sentence_quiz1}\nDesfecho 2: {sentence_quiz2}\nResposta:"
    )
    label_field = "answer_right_ending"
    labels: ClassVar = {1: "1", 2: "2"}
    aggregations: ClassVar[Mapping[str, Aggregation]] = {
        "acc": mean, "f1-macro": macro_f1, "f1-weighted": weighted_f1,
    }

    def cloze(self, row: Row) -> Cloze | None:
        """The story, to be completed with one of the endings."""
        story, _ = self.template.format_map(row).split("\nDesfecho 1:", 1)
        return cloze(f"{story}\nDesfecho:", [row["sentence_quiz1"], row["sentence_quiz2"]])

    def score(self, document: Document, output: str) -> Metrics:
        """`unknown_pred` says that there is no digit; a digit that stands among other text does not count."""
        return {**super().score(document, output), "unknown_pred": "1" not in output and "2" not in output}


def _without_line_break_tags(rows: list[Row]) -> list[Row]:
    return [{**row, "text": _LINE_BREAK_TAG.sub(" ", row["text"])} for row in rows]
