"""Families of tasks: how raw data becomes documents and how outputs are scored."""

from __future__ import annotations

from evaluation.poeta.families import arc, bigbench, exams, faquad, labels, mkqa, offensive, sts, wsc
from evaluation.poeta.table import Profile, task_spec
from evaluation.poeta.task import Task

FAMILIES: dict[str, type[Task]] = {
    "agnews": labels.AgNews,
    "arc": arc.Arc,
    "assin_rte": labels.AssinRte,
    "assin_sts": sts.AssinSts,
    "bigbench_bbq": bigbench.Bbq,
    "bigbench_choice": bigbench.Choice,
    "bigbench_shuffled_options": bigbench.ShuffledOptions,
    "bigbench_spelled": bigbench.Spelled,
    "bluex": exams.Bluex,
    "boolq": labels.BoolQ,
    "enem": exams.Enem,
    "enem_2022": exams.Enem2022,
    "faquad": faquad.Faquad,
    "hatebr": offensive.HateBr,
    "imdb": labels.Imdb,
    "massive": labels.Massive,
    "mkqa": mkqa.Mkqa,
    "poscomp": exams.Poscomp,
    "pt_hate_speech": offensive.PtHateSpeech,
    "sst2": labels.Sst2,
    "storycloze": labels.StoryCloze,
    "tweetsentbr": labels.TweetSentBr,
    "wsc": wsc.Wsc,
}


def load_task(name: str, profile: Profile = "official") -> Task:
    """A task of PoETa V2 by its official name. Raises UserError for an unknown one."""
    spec = task_spec(name, profile)
    return FAMILIES[spec.family](spec)
