import pytest

from megatron_ext.data.rewriting.checking.checks import check, load_thresholds
from megatron_ext.data.rewriting.checking.copies import kept_order_fraction, repeated_fraction
from megatron_ext.data.rewriting.checking.lexicon import load_lexicon
from megatron_ext.data.rewriting.checking.names import compare_names, find_names
from megatron_ext.data.rewriting.checking.qa import read_qa
from megatron_ext.data.rewriting.checking.text import Text, words_of
from megatron_ext.data.rewriting.checking.wrapping import strip_wrapping
from megatron_ext.errors import UserError

SOURCE = ("A fotossíntese é o processo pelo qual as plantas convertem a energia da luz do sol em energia química. Em "
          "1779, Jan Ingenhousz mostrou que as plantas só liberam oxigênio quando estão iluminadas.")
GOOD = ("As plantas usam a luz do sol para fazer o próprio alimento. Esse trabalho se chama fotossíntese. Em 1779, o "
        "cientista Jan Ingenhousz descobriu que elas soltam oxigênio apenas quando recebem luz.")
QA = ("Pergunta: O que é a fotossíntese?\nResposta: É o modo como as plantas transformam luz em energia química.\n\n"
      "Pergunta: O que Jan Ingenhousz descobriu em 1779?\nResposta: Que elas só liberam oxigênio sob a luz.")
LEXICON = load_lexicon("pt")


def reasons(output, style="easy", source=SOURCE, finish_reason="stop", length_ratio=1.0):
    thresholds = load_thresholds([style])[style]
    return check(source, output, finish_reason=finish_reason, length_ratio=length_ratio, thresholds=thresholds).reasons


def test_good_rewrites_pass():
    assert reasons(GOOD) == ()
    assert reasons(GOOD, "medium") == ()
    assert reasons(QA, "qa") == ()


@pytest.mark.parametrize("output, expected", [
    ("", "empty"),
    ("🔎\n🔎🔎", "empty"),
    ("Desculpe, mas não posso reescrever esse texto de 1779, pois ele trata das plantas.", "refusal"),
    ("Não me é possível reescrever este conteúdo, pois ele trata de plantas e de Jan Ingenhousz em 1779.", "refusal"),
    ("I'm sorry, but I can't help with that.", "refusal"),
    (GOOD + " Espero ter seguido o texto original.", "meta_text"),
    (GOOD + "<|im_start|>user", "meta_text"),
    ("<think>Vou manter os fatos.</think>" + GOOD, "meta_text"),
    ("Vou explicar de um jeito simples!\n\n" + GOOD, "meta_text"),
    (GOOD + "\n\n(Nota: usei frases curtas e palavras comuns, conforme solicitado.)", "meta_text"),
    (GOOD + "\n\n**Observação:** o vocabulário foi adaptado para especialistas.", "meta_text"),
    (GOOD + " Mantive o grau de dificuldade e conservei todos os fatos, sem acrescentar nada.", "meta_text"),
    ("## Fotossíntese\n\n" + GOOD, "markdown"),
    (GOOD.replace("luz do sol", "**luz do sol**"), "markdown"),
    (GOOD.removesuffix(" recebem luz."), "cut_off"),
    (GOOD.removesuffix(" luz."), "cut_off"),
    (SOURCE, "copied_source"),
    (SOURCE.replace("mostrou", "provou").replace("converte", "transforma"), "copied_source"),
    (" ".join(["As plantas fazem a fotossíntese desde 1779 com a luz."] * 8), "repetition"),
    (GOOD + " Esse trabalho se chama fotossíntese.", "repetition"),
    ("Las plantas utilizan la luz del sol para fabricar su propio alimento, según demostró Ingenhousz en el año 1779.",
     "other_language"),
    (GOOD + " They release oxygen only when they are in the light.", "other_language"),
    (GOOD.replace("recebem luz", "recebem 光"), "other_language"),
    ("Os cérebroes da fotossíntese seguinto anterioramente as técreses da quebrá, e as plantas alegrías 1779 veíares.",
     "unknown_words"),
    (GOOD.replace("Em 1779, o", "O"), "numbers_lost"),
    (GOOD.replace("1779", "1799"), "numbers_new"),
    (GOOD.replace(" Jan Ingenhousz", ""), "names_lost"),
    (GOOD + " Ele trabalhava com Joseph Priestley.", "names_new"),
    (GOOD.replace("elas soltam oxigênio apenas", "elas não soltam oxigênio"), "negation"),
    ("A partida foi suspensa aos dez minutos em razão das chuvas que inundaram o gramado.", "other_subject"),
])
def test_each_fault_is_named(output, expected):
    source = SOURCE.replace("só liberam oxigênio quando estão iluminadas",
                            "soltam oxigênio quando recebem luz") if expected == "negation" else SOURCE
    assert expected in reasons(output, source=source)


def test_faults_known_from_the_outside():
    assert reasons(GOOD, finish_reason="length") == ("cut_by_max_tokens",)
    for reason in ("content_filter", "missing", "abort"):
        assert reasons(GOOD, finish_reason=reason) == ("not_finished",)
    assert reasons(GOOD, length_ratio=0.1) == ("too_short",)
    assert reasons(GOOD + " " + GOOD.replace("plantas", "folhas"), length_ratio=9.0)[0] == "too_long"


@pytest.mark.parametrize("text, num_pairs", [
    (QA, 2),
    ("**Pergunta:** O que houve?\n**Resposta:** Nada.", 1),
    ("Pergunta 1: O que houve?\nResposta 1: Nada.\n\nPergunta 2: E depois?\nResposta 2: Também nada.", 2),
    ("1. Pergunta: O que houve?\n   Resposta: Nada.\n2. Pergunta: E depois?\n   Resposta: Também nada.", 2),
    ("P: O que houve?\nR: Nada.", 1),
    ("1) P: O que houve?\nR: Nada.", 1),
    ("### Pergunta 1\nO que houve?\n### Resposta\nNada.", 1),
    ("Pergunta: O que houve? Resposta: Nada.", 1),
    ("- **Pergunta nº 1** – O que houve?\n- **Resposta** – Nada.", 1),
    ("Pergunta: Quais são?\nResposta: São estes:\n\n- um;\n- outro.", 1),
])
def test_pairs_are_read_as_people_write_them(text, num_pairs):
    found = read_qa(text, LEXICON)
    assert (len(found.pairs), found.num_broken, found.outside) == (num_pairs, 0, "")


@pytest.mark.parametrize("output", [
    GOOD,
    "Pergunta: O que houve em 1779?\nResposta:\n",
    QA + "\n\nPergunta: E depois?",
    QA + "\n\nAs plantas convertem a luz do sol em energia química, como se viu em 1779.",
    "Claro, as plantas:\n\n" + QA,
    "Pergunta: O que Jan Ingenhousz mostrou em 1779 sobre plantas?\nResposta: O texto não informa."])
def test_what_is_no_qa(output):
    assert "wrong_qa_format" in reasons(output, "qa")


def test_words_of_the_source_are_known_however_odd():
    odd = "xyzzyto qwrtplam brtzugh"
    assert "unknown_words" not in reasons(GOOD.replace("alimento", odd), source=f"{SOURCE} {odd}")
    assert "unknown_words" in reasons(GOOD.replace("alimento", odd))
    rare = "As plantas, fotossintetizadoras, aproveitam-se da luminosidade solar, oxigenando-se em 1779 Jan Ingenhousz."
    assert "unknown_words" not in reasons(rare)


def test_what_the_source_has_itself_is_no_fault():
    assert "meta_text" not in reasons(GOOD + " Está no texto original.", source=SOURCE + " Veja o texto original.")
    markdown = "## Título\n\n**Luz** e sombra.\n"
    assert "markdown" not in reasons("## Luz\n\n" + GOOD.replace("luz", "**luz**"), source=markdown + SOURCE)
    tagged = "A etiqueta <think> do HTML não existe. "
    assert "meta_text" not in reasons("A etiqueta <think> não há no HTML. " + GOOD, source=tagged + SOURCE)
    chorus = "Ai, ai, ai, meu bem. "
    assert "repetition" not in reasons(2 * chorus + GOOD, source=2 * chorus + SOURCE)
    assert "repetition" in reasons(3 * chorus + GOOD, source=2 * chorus + SOURCE)
    open_end = "Chuva forte atinge o litoral paulista"
    assert reasons("Temporal castiga a costa de São Paulo", "medium", source=open_end) == ()


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
    assert strip_wrapping(output, SOURCE, LEXICON) == GOOD


@pytest.mark.parametrize("text", [
    GOOD, QA, "Claro que as plantas crescem: precisam de luz.", "Aqui estão as plantas. Elas crescem.",
    "Texto é tudo o que se lê.\nE mais.", "Segue-se uma regra: quem planta colhe."])
def test_a_plain_text_is_not_touched(text):
    assert strip_wrapping(text, SOURCE, LEXICON) == text


@pytest.mark.parametrize("source, text", [
    ("Lave as mãos.\nSe precisar de ajuda, ligue para o 136.",
     "Higienize as mãos.\nCaso precise de auxílio, disque 136."),
    ("Lave as mãos. O atendimento é gratuito.", "Higienize as mãos.\nCaso precise de atendimento, ele é gratuito."),
    ("Aqui está o texto: leia.", "Aqui está o texto: leia com calma."),
    ("Use ```\nls\n``` e leia.", "```\nls\n```"),
])
def test_what_the_source_has_is_never_stripped(source, text):
    assert strip_wrapping(text, source, LEXICON) == text


def test_names_are_capitals_inside_sentences():
    text = ("Ontem à tarde o presidente João da Silva visitou Porto Alegre. Depois a Organização das Nações Unidas "
            "(ONU) declarou em nota que nada mudou desde então. Em Minas Gerais, chove muito nesta época do ano.")
    found = {name.words for name in find_names(Text(text, LEXICON), LEXICON) if not name.begins_sentence}
    assert found == {("joao", "silva"), ("porto", "alegre"), ("organizacao", "nacoes", "unidas"), ("onu",),
                     ("minas", "gerais")}
    assert find_names(Text("TODO O TEXTO EM CAIXA ALTA DO JORNAL", LEXICON), LEXICON) == []


@pytest.mark.parametrize("source, text, lost, new", [
    ("Diz o IBGE que a renda subiu.", "Diz o Instituto Brasileiro de Geografia e Estatística que ela subiu.", 0, 0),
    ("A nota que a Universidade Federal de Minas Gerais deu é boa.", "É boa a nota da UFMG.", 0, 0),
    ("A nota da FAO e da ONU saiu.", "A nota da Organização das Nações Unidas para a Alimentação e da ONU saiu.", 0, 0),
    ("O craque uruguaio chegou.", "O craque do Uruguai chegou.", 0, 0),
    ("Chove no litoral paulista.", "Chove na costa de São Paulo.", 0, 0),
    ("O rei dom Pedro II caiu.", "Caiu o rei D. Pedro II, no século XIX.", 0, 0),
    ("A obra de Ana Lima saiu.", "A obra de Bia Rocha saiu.", 1, 1),
    ("A nota da NASA saiu.", "A nota da ESA saiu.", 1, 1),
    ("A nota da Embrapa saiu.", "A nota da Empresa Brasileira de Pesquisa Agropecuária saiu.", 0, 0),
    ("A nota da Fundação Oswaldo Cruz saiu.", "A nota da Fiocruz saiu.", 0, 0),
    ("A nota da FAO e da OMS saiu.", "Saiu a nota de FAO e OMS.", 0, 0),
    ("O IPCA subiu.", "Subiu o Índice Nacional de Preços ao Consumidor Amplo (IPCA).", 0, 0),
    ("O verso está em Lucas.", "O verso está em Lc.", 0, 0),
    ("A loja fica em Campos Verdes, em Goiás.", "A loja fica em Campos Verdes (GO).", 0, 0),
    ("O LOCATÁRIO paga o aluguel ao LOCADOR.", "Quem aluga paga o aluguel.", 0, 0),
    ("O preço é de US$ 5.", "O preço é de 5 dólares.", 0, 0),
    ("Nasceu na pequena Sacramento.", "Nasceu na pequena Sacramento, em Minas Gerais.", 0, 0),
    ("A rede saiu de Mato Grosso.", "A rede saiu de Minas Gerais.", 1, 1),
    ("O cartão do CadÚnico saiu.", "Saiu o cartão do Cadastro Único.", 0, 0),
    ("São grátis quatro saques e duas TED.", "São grátis quatro saques e duas TEDs.", 0, 0),
    ("A câmera tem 50 MP e 6 GB.", "A câmera tem 50 megapixels e seis gigabytes.", 0, 0),
    ("A água evapora com o calor do Sol.", "Com o calor do Sol, ela evapora na Amazônia e em São Paulo.", 0, 2),
])
def test_names_are_compared_with_expansions_and_origins(source, text, lost, new):
    found = compare_names(Text(source, LEXICON), Text(text, LEXICON), LEXICON)
    assert (len(found.lost), len(found.new)) == (lost, new)


@pytest.mark.parametrize("source, text", [
    ("O dado muda o intervalo, que deve ser ampliado.", "O dado muda o intervalo, que não deve ser ampliado."),
    ("As abelhas nativas não picam as pessoas.", "As abelhas nativas picam as pessoas."),
    ("Os morcegos não são cegos à noite.", "Os morcegos são cegos à noite."),
    ("Há modelos de 127 V e de 220 V (não é bivolt).", "O aparelho é bivolt, de 127 V e de 220 V."),
    ("Não envie a pasta .venv para o Git.", "A pasta .venv deve ir para o Git."),
    ("O aluguel de maio sofre, depois, um reajuste pelo índice.", "O aluguel de maio não sofre reajuste pelo índice."),
])
def test_a_denial_that_came_or_went(source, text):
    assert "negation" in reasons(text, "easy", source)


@pytest.mark.parametrize("source, text", [
    ("O computador desligou do nada com a mudança.", "O computador desligou com a mudança, de repente."),
    ("Tenho fotos que não posso perder e meu disco é pequeno.", "Quero manter as fotos. Meu disco é pequeno."),
    ("Adicione o ácido à água, e nunca o contrário.", "Ponha o ácido na água. Não ponha a água no ácido."),
    ("Suculentas gostam de sol e odeiam água demais.", "Gostam de sol, mas não gostam de muita água."),
    ("Compare pelo custo total, não pela taxa de juros.", "Compare pelo custo total em detrimento da taxa de juros."),
    ("O país foi o último da região a abolir a prática.", "Nenhum outro país da região demorou tanto."),
    ("A felicidade não depende do que acontece conosco, mas do juízo.",
     "Do que depende a felicidade, para eles? Do juízo, e não do que acontece conosco."),
    ("O tempo não cura tudo.", "A médica contesta que o tempo cura tudo."),
    ("Após a atualização, aplicativos antigos podem não funcionar.",
     "Aplicativos antigos podem parar após a atualização."),
    ("Não é o tempo que cura, mas o que se faz.", "O tempo passa. O que se faz é que cura."),
    ("Quem começa não deve retirar ninhos da mata.", "Retirar ninhos da mata constitui crime."),
    ("As abelhas não ferroam, e ninguém as teme.", "Destituídas da capacidade de ferroar, ninguém as teme."),
    ("Costuma nadar cerca de 15 km por dia.", "Ela nada uns 15 km por dia."),
    ("Em outros biomas ela foge. Ali a onça se deixa ver.", "Não como em outros biomas: ali a onça se deixa ver."),
    ("Ele não a deixou participar da festa em 1922.", "Ele obstou a participação dela na festa em 1922."),
    ("Deixe esfriar antes de cortar.", "Pode-se cortar quente? Não: deixe esfriar."),
    ("O aumento da oferta foi de um terço, com redução do preço.", "A oferta avançou um terço, e o preço caiu."),
])
def test_a_denial_in_other_words_is_none(source, text):
    assert {"negation", "direction"}.isdisjoint(reasons(text, "easy", source))


def test_answers_and_talk_are_told_by_their_subject():
    qa = "Pergunta: Por que as plantas de Jan Ingenhousz, em 1779, intrigam?\nResposta: Porque não apresentam sintomas."
    assert "wrong_qa_format" not in reasons(qa, "qa")
    assert "meta_text" not in reasons(GOOD + " É preciso começar cedo.")
    assert "meta_text" not in reasons(GOOD + " O usuário quer saber mais.")
    assert "meta_text" in reasons("Olá! Tudo certo.\n" + GOOD)
    assert "meta_text" in reasons(GOOD + " Assim o texto ficou mais fácil de ler.")
    assert "meta_text" in reasons(GOOD + " Gostaria que eu fizesse uma lista disso?")
    assert "meta_text" in reasons(GOOD + "\n\n*Obs.: foi preservada a grafia de antes.*")
    assert "meta_text" in reasons("O texto apresenta um aviso. " + GOOD)


@pytest.mark.parametrize("output", [
    "Versão enciclopédica — " + GOOD,
    "Resumo do texto: " + GOOD,
    "[Texto formal]\n" + GOOD,
    GOOD + "\n\nFicou claro? Se precisar, é só falar!",
    GOOD + "\n\nBom proveito! Espero ter ajudado.",
    GOOD + "\n\nCaso queira, posso deixar tudo ainda mais curto ou adaptar para outro público.",
    GOOD + "\n\nReorganizei as ideias em um único parágrafo e retirei as marcas de oralidade.",
    GOOD + " Observa-se que todas as datas e valores do original foram mantidos.",
    GOOD + " 🌱",
    "Pronto! Simplifiquei a história da fotossíntese para você:\n\n" + GOOD,
    "Veja como fica o relato em linguagem bem acessível.\n\n" + GOOD,
    "Conforme requerido, reapresento a passagem com vocabulário culto:\n\n" + GOOD,
    "Primeiro vou identificar as ideias principais. Agora escrevo tudo. " + GOOD,
    GOOD + "\n\nPalavras-chave: luz, plantas, oxigênio.",
    GOOD + "\n\nOpção 2 (mais curta): As plantas usam a luz.",
    GOOD + "\n\nCurtiu? Conta pra gente nos comentários!",
])
def test_words_about_the_task_in_any_frame(output):
    assert "meta_text" in reasons(output)


@pytest.mark.parametrize("output", [
    GOOD + "\nE você, já plantou uma semente?",
    "Fotossíntese: " + GOOD,
    GOOD + " Se quiser ver isso, basta pôr a planta na luz.",
    GOOD + " Mantidas no escuro, elas param.",
])
def test_words_about_the_subject_are_no_frame(output):
    assert "meta_text" not in reasons(output)


def test_a_title_that_the_source_has_not():
    assert "markdown" in reasons("O alimento das plantas\n\n" + GOOD)
    assert "markdown" not in reasons("O alimento das plantas\n\n" + GOOD, source="A luz e as plantas\n\n" + SOURCE)
    assert "markdown" not in reasons(GOOD.replace(". Em 1779", ".\n\nEm 1779"))


def test_a_pair_about_the_text_is_none():
    assert "wrong_qa_format" in reasons("Pergunta: uma pergunta sobre o texto\nResposta: a resposta\n\n" + QA, "qa")
    short = "Pergunta: Elas liberam oxigênio sem luz?\nResposta: Não."
    assert "wrong_qa_format" not in reasons(f"{QA}\n\n{short}", "qa")


@pytest.mark.parametrize("source, text", [
    ("O mel da jataí rende pouco e é caro.", "O mel da jataí rende bem e é barato."),
    ("O telhado deve estar voltado para o norte, sem sombra.", "O telhado deve estar voltado para o sul, sem sombra."),
    ("Menos distração melhora a aprendizagem.", "Menos distração prejudica a aprendizagem."),
    ("A médica recusava a lobotomia.", "A médica defendia a lobotomia."),
    ("Raramente o problema está no livro.", "Quase sempre o problema está no livro."),
    ("A água é aquecida pelo Sol. As camadas mais altas da atmosfera são frias.",
     "O Sol aquece a água. As camadas mais altas da atmosfera são quentes."),
])
def test_opposites(source, text):
    assert "direction" in reasons(text, "easy", source)
    assert "direction" not in reasons(source, "easy", source)


def test_directions_are_told_beside_other_denials():
    source = "O Santa venceu o Náutico por 2 a 0. O Náutico não vence há 4 jogos."
    assert "direction" in reasons("O Santa foi derrotado pelo Náutico por 2 a 0. O Náutico não vence há 4 jogos.",
                                  "easy", source)


def test_copies_and_repetition():
    assert repeated_fraction(words_of(GOOD)) == 0
    assert repeated_fraction(["a"] * 10) > 0.8
    assert kept_order_fraction(list("abcd"), list("axcd")) == 0.75
    assert kept_order_fraction([], ["a"]) == 0 == kept_order_fraction(["a"], [])


def test_mistakes_in_a_thresholds_file_and_a_language_are_named(tmp_path):
    file = tmp_path / "thresholds.yaml"
    file.write_text("default: {min_length_ratio: -1, max_lenght_ratio: 2}\n", encoding="utf-8")
    with pytest.raises(UserError, match="max_length_ratio") as error:
        load_thresholds(["easy"], file)
    assert "min_length_ratio" in str(error.value)
    file.write_text("easy: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="default"):
        load_thresholds(["easy"], file)
    with pytest.raises(UserError, match=r"'xx'.*pt"):
        load_lexicon("xx")
