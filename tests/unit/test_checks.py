import pytest
from megatron_ext.data.rewriting.checks import check, load_thresholds
from megatron_ext.data.rewriting.measures import (
    entity_retention,
    named_entities,
    number_retention,
    repeated_fraction,
    words_of,
)
from megatron_ext.data.rewriting.wrapping import strip_wrapping

from megatron_ext.data.rewriting.prompts import PROMPTS_FOLDER
from megatron_ext.errors import UserError

SOURCE = ("A fotossíntese é o processo pelo qual as plantas convertem a energia da luz do sol em energia química. Em "
          "1779, Jan Ingenhousz mostrou que as plantas só liberam oxigênio quando estão iluminadas.")
GOOD = ("As plantas usam a luz do sol para fazer o próprio alimento. Esse trabalho se chama fotossíntese. Em 1779, o "
        "cientista Jan Ingenhousz descobriu que elas soltam oxigênio apenas quando recebem luz.")
QA = ("Pergunta: O que é a fotossíntese?\nResposta: É o modo como as plantas transformam luz em energia química.\n\n"
      "Pergunta: O que Jan Ingenhousz descobriu em 1779?\nResposta: Que elas só liberam oxigênio sob a luz.")


def reasons(output, style="easy", source=SOURCE, finish_reason="stop", length_ratio=1.0):
    thresholds = load_thresholds([style])[style]
    return check(source, output, finish_reason=finish_reason, length_ratio=length_ratio, thresholds=thresholds).reasons


def test_good_rewrites_pass():
    assert reasons(GOOD) == ()
    assert reasons(GOOD, "medium") == ()
    assert reasons(QA, "qa") == ()
    assert reasons("**Pergunta:** O que houve em 1779?\n**Resposta:** Jan Ingenhousz estudou as plantas.", "qa") == ()


@pytest.mark.parametrize("output, expected", [
    ("", "empty"),
    ("🔎\n🔎🔎", "empty"),
    ("Desculpe, mas não posso reescrever esse texto de 1779, pois ele trata das plantas.", "refusal"),
    ("I'm sorry, but I can't help with that.", "refusal"),
    (GOOD + " Espero ter seguido o texto original.", "meta_text"),
    (GOOD + "<|im_start|>user", "meta_text"),
    (SOURCE, "copied_source"),
    (" ".join(["As plantas fazem a fotossíntese desde 1779 com a luz."] * 8), "repetition"),
    ("Las plantas utilizan la luz del sol para fabricar su propio alimento, según demostró Ingenhousz en el año 1779.",
     "not_portuguese"),
    ("Os cérebroes da fotossíntese seguinto anterioramente as técreses da quebrá, e as plantas alegrías 1779 veíares.",
     "unknown_words"),
    (GOOD.replace("Em 1779, o", "O"), "numbers_lost"),
    (GOOD.replace(" Jan Ingenhousz", ""), "entities_lost"),
])
def test_each_fault_is_named(output, expected):
    assert expected in reasons(output)


def test_faults_known_from_the_outside():
    assert reasons(GOOD, finish_reason="length") == ("cut_by_max_tokens",)
    assert reasons(GOOD, length_ratio=0.1) == ("too_short",)
    assert reasons(GOOD, length_ratio=9.0) == ("too_long",)


def test_answers_without_questions_are_no_qa():
    assert reasons(GOOD, "qa") == ("wrong_qa_format",)
    assert "wrong_qa_format" in reasons("Pergunta: O que houve em 1779?\nResposta:\n", "qa")


def test_words_of_the_source_are_known_however_odd():
    assert "unknown_words" not in reasons(GOOD.replace("alimento", "xyzzyto"), source=SOURCE + " xyzzyto")
    assert "unknown_words" in reasons(GOOD.replace("alimento", "xyzzyto"))


def test_what_the_source_says_itself_is_no_meta_text():
    assert "meta_text" not in reasons(GOOD + " Está no texto original.", source=SOURCE + " Veja o texto original.")


@pytest.mark.parametrize("output", [
    f"Aqui está o texto reescrito em português simples:\n\n{GOOD}",
    f"Claro! Aqui está uma versão mais simples:\n{GOOD}",
    f"Certamente! Vou reescrever.\n\n{GOOD}",
    f"**Texto reescrito:**\n\n{GOOD}",
    f"<texto>\n{GOOD}\n</texto>",
    f"{GOOD}\n</texto>",
    f"```\n{GOOD}\n```",
    f"{GOOD}\n\nEspero que isso ajude! Se precisar de mais, é só pedir.",
    f"  {GOOD}\n",
])
def test_wrapping_is_stripped(output):
    assert strip_wrapping(output) == GOOD


@pytest.mark.parametrize("text", [
    GOOD, QA, "Claro que as plantas crescem: precisam de luz.", "Aqui estão as plantas. Elas crescem.",
    "Texto é tudo o que se lê.\nE mais.", "Segue-se uma regra: quem planta colhe."])
def test_a_plain_text_is_not_touched(text):
    assert strip_wrapping(text) == text


def test_numbers_are_compared_by_value():
    assert number_retention("São 12.345 casas e 3,5 km em 05/2001.", "Em 5/2001 eram 12 345 casas e 3.5 km.") == 1.0
    assert number_retention("De 1939 a 1945.", "Até 1945.") == 0.5
    assert number_retention("Sem números.", "Também 7 não.") == 1.0


def test_names_are_capitals_inside_sentences():
    text = ("Ontem à tarde o presidente João da Silva visitou Porto Alegre. Depois a Organização das Nações Unidas "
            "(ONU) declarou em nota que nada mudou desde então. Em Minas Gerais, chove muito nesta época do ano.")
    assert named_entities(text) == {frozenset(name.split()) for name in (
        "joão silva", "porto alegre", "organização nações unidas", "onu", "minas gerais")}
    assert named_entities("TODO O TEXTO EM CAIXA ALTA DO JORNAL") == set()
    assert entity_retention(text, words_of("João Silva foi a Porto Alegre, em Minas Gerais, segundo a ONU.")) == 0.8
    assert entity_retention("Nenhum nome aqui.", []) == 1.0


def test_repetition_is_zero_for_a_text_that_says_nothing_twice():
    assert repeated_fraction(words_of(GOOD)) == 0
    assert repeated_fraction(["a"] * 10) > 0.8


def test_every_built_in_style_has_valid_thresholds():
    styles = [file.stem for file in PROMPTS_FOLDER.glob("*.md")]
    assert set(load_thresholds(styles)) == {"easy", "medium", "hard", "qa"}


def test_mistakes_in_a_thresholds_file_are_named(tmp_path):
    file = tmp_path / "thresholds.yaml"
    file.write_text("default: {min_length_ratio: -1, max_lenght_ratio: 2}\n", encoding="utf-8")
    with pytest.raises(UserError, match="max_length_ratio") as error:
        load_thresholds(["easy"], file)
    assert "min_length_ratio" in str(error.value)
    file.write_text("easy: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="default"):
        load_thresholds(["easy"], file)
