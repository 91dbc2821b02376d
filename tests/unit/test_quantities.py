import pytest

from megatron_ext.data.rewriting.checking.exchanges import has_mismatch
from megatron_ext.data.rewriting.checking.lexicon import load_lexicon
from megatron_ext.data.rewriting.checking.placing import has_swapped
from megatron_ext.data.rewriting.checking.quantities import compare as weigh
from megatron_ext.data.rewriting.checking.quantities import missing, new, read_quantities
from megatron_ext.data.rewriting.checking.text import Text

LEXICON = load_lexicon("pt")


def compare(source, text):
    there, here = read_quantities(source, LEXICON), read_quantities(text, LEXICON)
    return [str(one.value) for one in missing(there, here)], [str(one.value) for one in new(there, here)]


def swapped(source, text):
    numbers = read_quantities(source, LEXICON), read_quantities(text, LEXICON)
    return has_mismatch(*numbers) or has_swapped(Text(source, LEXICON), Text(text, LEXICON), numbers, LEXICON)


@pytest.mark.parametrize("one, other", [
    ("O estádio recebeu 45.000 torcedores.", "Foram 45 mil torcedores."),
    ("O estádio recebeu 45 mil torcedores.", "Foram quarenta e cinco mil torcedores."),
    ("Subiu 8,5%.", "Subiu 8,5 por cento."),
    ("Subiu 8,5%.", "Subiu 8.5%."),
    ("Custou R$ 1,2 bilhão.", "Custou 1,2 bilhão de reais."),
    ("Custou R$ 2.921.", "Custou R$ 2.921,00."),
    ("Custou 2 milhões e meio.", "Custou R$ 2.500.000."),
    ("Foi de 180 para 218 bilhões.", "Foi de R$ 180 bilhões para R$ 218 bilhões."),
    ("De 2 a 5 mil abelhas.", "Entre duas mil e cinco mil abelhas."),
    ("Levou 36 meses.", "Levou três anos."),
    ("Levou dez anos.", "Levou uma década."),
    ("Às 14h30.", "Às duas e meia da tarde."),
    ("Às 16h.", "Às 16:00."),
    ("Às 16h.", "Às quatro horas da tarde."),
    ("Em 05/10/1988.", "Em 5 de outubro de 1988."),
    ("São 12 345 casas.", "São 12.345 casas."),
    ("De 15 em 15 minutos.", "A cada quarto de hora ou um quarto de hora."),
    ("Mede 1,20 m.", "Mede um metro e vinte."),
    ("Mede 1,2 metro.", "Mede 120 centímetros."),
    ("Pesa 0,5 kg.", "Pesa 500 gramas."),
    ("No século XIX.", "No século 19."),
    ("O art. 5º, § 1º.", "O artigo quinto, parágrafo primeiro."),
    ("Caiu pela metade.", "Caiu 50%."),
    ("Um quinto do quadro.", "São 20% do quadro."),
    ("1 em cada 10 pessoas.", "Um décimo das pessoas."),
    ("4 em cada 10 empresas fecharam.", "De cada dez empresas, quatro fecharam."),
    ("4 em cada 10 empresas fecharam.", "Fecharam 40% das empresas."),
    ("O valor 0 desliga.", "O valor zero desliga."),
    ("Multa de R$ 500,00 a R$ 10.000,00.", "Multa de 500 a 10 mil reais."),
    ("De 20 a 50 milhões.", "De vinte a cinquenta milhões."),
    ("Dura 85 minutos.", "Dura 1h25."),
    ("Dura 2h41.", "Dura duas horas e 41 minutos."),
    ("Das 7h às 22h.", "Das 7 da manhã às 10 da noite."),
    ("Custa 0,54 euro.", "Custa 54 cêntimos."),
    ("Custa 100 mil-réis.", "Custa cem mil-réis."),
    ("Nos anos 1950.", "Na década de 50 ou nos anos cinquenta."),
    ("Uma xícara e meia.", "1 1/2 xícara."),
    ("Até 9/5.", "Até 9 de maio."),
    ("Em Lucas 15:11-32.", "Em Lc 15,11-32."),
    ("Repita a cada 20 minutos, na primeira hora.", "Na primeira hora, a cada vinte minutos."),
    ("Repita a cada 20 minutos na primeira hora.", "Na primeira hora, a cada vinte minutos."),
    ("Célula de cada um dos reinos.", "Uma célula de cada um."),
    ("Tela de 128GB, 6GB e 50MP.", "Tela de 128 GB, 6 GB e 50 MP."),
    ("Venceu em 4min04s408.", "Venceu em 4 minutos, 4 segundos e 408 milésimos."),
    ("A Lei 8.078/90.", "A Lei nº 8.078, de 1990."),
    ("Na safra 2019/20.", "Na safra de 2019 e 2020."),
    ("Em 17.05.23.", "Em 17 de maio de 2023."),
    ("Até 30/06.", "Até 30 de junho."),
    ("São 2,5 milhões de casas.", "São 2 milhões e 500 mil casas."),
    ("São 2.300 casas.", "São 2 mil e 300 casas."),
    ("São 1,3 bilhão de euros.", "São 1 bilhão e 300 milhões de euros."),
    ("Custa R$ 1.234,56.", "Custa 1.234 reais e 56 centavos."),
    ("Use 500 ml de leite.", "Use meio litro de leite."),
    ("Dura 30 meses.", "Dura dois anos e meio."),
    ("Vale para 100% dos casos.", "Vale para todos os casos."),
    ("Nadou em 1h59min30s8.", "Nadou em 1 hora, 59 minutos e 30,8 segundos."),
    ("Correu em 2:04:30.", "Correu em 2 horas, 4 minutos e 30 segundos."),
    ("Contrato de 90 dias e prazo de 365 dias.", "Contrato de três meses e prazo de um ano."),
    ("A diária é de R$ 180.", "A diária sai por cento e oitenta reais."),
    ("A multa de 10% e a de 3% somam 13%.", "Somam treze por cento a de dez por cento e a de três por cento."),
])
def test_equal_amounts_in_other_forms(one, other):
    assert compare(one, other) == ([], [])
    assert compare(other, one) == ([], [])


@pytest.mark.parametrize("source, text, lost, found", [
    ("Subiu 8,5 %.", "Subiu 85 %.", ["8.5"], ["85"]),
    ("Tome 2,5 mg.", "Tome 25 mg.", ["2.5"], ["25"]),
    ("São 45.000 casas.", "São 45 casas.", ["45000"], ["45"]),
    ("São 2 mil e 300 mil casas.", "São 2.300 casas.", ["2000", "300000"], ["2300"]),
    ("Pressão de 120/80 e Lei 8.078/90.", "Pressão de 120/80 e Lei 8.078/91.", ["1990"], ["1991"]),
    ("Prazo de 15 dias.", "Prazo de trinta dias.", ["15"], ["30"]),
    ("Prazo de 15 dias.", "Prazo de quinze dias.", [], []),
    ("Sai às 7h45.", "Sai às 7h15.", ["7.75"], ["7.25"]),
    ("Em 05/10/1988.", "Em 5 de novembro de 1988.", ["10"], ["11"]),
    ("São 190 milhões.", "São 190 mil.", ["190000000"], ["190000"]),
    ("Custa R$ 5.", "Custa US$ 5.", ["5"], ["5"]),
    ("Custa R$ 5,20.", "Custa cinco reais e setenta centavos.", ["5.2"], ["5.7"]),
    ("Contrato de 90 dias.", "Contrato de dois meses.", ["90"], []),
    ("Há casas.", "Há duas casas e três ruas.", [], []),        # small numbers in words may count what is listed
    ("Há casas.", "Há 2 casas e doze ruas.", [], ["2", "12"]),
    ("O 802.1p e o 3D.", "O 3D e o 802.1p.", [], []),           # names, not numbers
])
def test_numbers_lost_and_new(source, text, lost, found):
    assert compare(source, text) == (lost, found)


def test_labels_of_lists_are_no_numbers():
    assert compare("Abra e leia.", "1. Abra.\n2. Leia.") == ([], [])
    assert compare("Assim: 1) abra; 2) leia.", "Abra e leia.") == ([], [])
    assert compare("Acertei (fiz 20 de 21) e saí.", "Acertei 20 de 21.") == ([], [])


@pytest.mark.parametrize("source, text", [
    ("Saiu em 1959; três anos depois veio o concerto.", "Saiu em 1959, e o concerto foi em 1962."),
    ("Nasceu em 1905 e morreu em 1999.", "Viveu de 1905 a 1999 e morreu aos 94 anos."),
    ("Em 2023, mais do que no ano anterior.", "Em 2023, mais do que em 2022."),
])
def test_years_may_follow_from_others(source, text):
    assert compare(source, text)[1] == []


@pytest.mark.parametrize("source, text, num_lost, num_new", [
    ("Em 1990, regue a cada 15 dias.", "Em 1990, regue duas vezes por mês.", 0, 0),  # one small number alone
    ("Em 1990, regue a cada 15 dias.", "Em 1990, regue a cada 30 dias.", 1, 1),      # one in another's place
    ("Em 1990 houve festa.", "Em 1990 houve festa por 18 horas.", 0, 0),
    ("Em 1990 houve festa.", "Em 1990 houve festa para 500.", 0, 1),
    ("Em 1990 houve festa.", "Em 1990 houve festa, com alta de 18%.", 0, 1),
])
def test_small_numbers_alone_tell_little(source, text, num_lost, num_new):
    lost, found = weigh(*(read_quantities(one, LEXICON) for one in (source, text)))
    assert (len(lost), len(found)) == (num_lost, num_new)


@pytest.mark.parametrize("source, text", [
    ("A taxa caiu de 8,5% para 7,9%.", "A taxa subiu de 7,9% para 8,5%."),
    ("O time venceu por 3 a 1 e fez 5 mudanças.", "O time venceu por 5 a 3 e fez 1 mudança."),
    ("Governou de 1840 a 1889; a guerra foi de 1864 a 1870.", "Governou de 1864 a 1889; a guerra foi de 1840 a 1870."),
    ("Tome 500 mg a cada 8 horas.", "Tome 500 mg a cada 8 minutos."),
    ("Use 3 xícaras de fubá e 4 ovos.", "Use 4 xícaras de fubá e 3 ovos."),
    ("A multa é de 2%, e os juros são de 1%.", "A multa é de 1%, e os juros são de 2%."),
    ("No dia, alta de 2,3%. No mês, queda de 4%.", "No dia, alta de 4%. No mês, queda de 2,3%."),
    ("A vacina reduziu os casos em 92,4%.", "A vacina aumentou os casos em 92,4%."),
    ("O governo ofereceu 6%, mas a categoria pede 14%.", "A categoria pede 6%, mas o governo ofereceu 14%."),
    ("O comboio parte de Coimbra às 7h45 e chega a Lisboa às 9h50.",
     "O comboio parte de Lisboa às 7h45 e chega a Coimbra às 9h50."),
    ("São o Brasil (70%) e a Argentina (19%).", "Na Argentina estão 70% e no Brasil 19%."),
    ("Para casas, o aumento será de 5,95%; para a indústria, de 8,12%.",
     "A alta será de 8,12% para casas e de 5,95% para a indústria."),
    ("O preço do café subiu 7%, o do leite subiu 8%, e o do arroz subiu 9%.",
     "Subiram o leite, com 7%; o arroz, com 8%; e o café, com 9%."),
    ("Vai até 30/06.", "Vai até 30 de julho."),
    ("De 10 de abril a 31 de maio.", "De 10 de maio a 31 de abril."),
    ("De R$ 329,90 por R$ 249,90 à vista.", "Subiu de R$ 249,90 para R$ 329,90."),
    ("Empatou em 2 a 2, com o terceiro cartão.", "Venceu por 3 a 2, com o terceiro cartão."),
    ("Até 10 parcelas. O atraso gera multa de 2% e juros de 1%. Isenta-se quem ganha 2 salários ou 1 pensão.",
     "Até dez parcelas. O atraso gera multa de 1% e juros de 2%. Quem ganha 2 salários ou 1 pensão está isento."),
    ("O risco foi 31% menor.", "Houve alta de 31% no risco."),
])
def test_numbers_and_names_in_other_places(source, text):
    assert swapped(source, text)
    assert not swapped(source, source)


@pytest.mark.parametrize("source, text", [
    ("A taxa caiu de 8,5% para 7,9%.", "A taxa, antes de 8,5%, passou a 7,9%."),
    ("Nasceu em 1825 e governou de 1840 a 1889.", "Governou de 1840 a 1889. Nasceu em 1825."),
    ("Viveu de 1950 a 2010.", "Nasceu em 1950 e morreu em 2010."),
    ("O governo ofereceu reajuste de 6%, mas a categoria pede 14%.",
     "A categoria reivindica reajuste de 14%, ante os 6% do governo."),
    ("Parte de Coimbra às 7h45 e chega a Lisboa às 9h50.",
     "Às 9h50 chega a Lisboa, vindo de Coimbra, de onde sai às 7h45."),
    ("Com 4 xícaras de leite e 3 xícaras de açúcar.", "Com quatro xícaras de leite e três de açúcar."),
    ("Vai de -20 a 20; o padrão é 0.", "Vai de -20 a 20: negativo, de 0 a -20; positivo, de 0 a 20."),
    ("Se o prazo cair para 12 meses, a parcela sobe.", "A contração do prazo a 12 meses eleva a parcela."),
    ("Começou com 6 funcionários e hoje emprega 1.340 pessoas.",
     "Começou com seis empregados e hoje tem 1.340 funcionários."),
    ("Um ano equivale a 165 anos terrestres, e o dia dura 16 horas.",
     "Um ano é igual a 165 anos na Terra. Um dia tem 16 horas."),
    ("Ficou em 12º lugar, depois de ter sido o 13º colocado.",
     "Obteve a 12ª colocação, depois de ter ocupado o 13º lugar."),
    ("Produziu 9.870 kg/ha com a dose de 120 kg/ha.",
     "Com 120 quilos por hectare, colheram-se 9.870 quilos por hectare."),
    ("Vai de 10 a 12 de maio.", "Vai de 10 de maio a 12 de maio."),
    ("Marcou aos 41 da etapa final, no 2 a 0.", "Marcou aos 41 da segunda etapa, no 2 a 0."),
    ("O motim aconteceu no Rio em novembro de 1904. Foram seis dias de confusão nas ruas.",
     "No Rio aconteceu, por seis dias, o motim de novembro de 1904."),
    ("O diagnóstico exige 14 por 9 em pelo menos duas consultas.",
     "O diagnóstico exige 14 por 9 ou mais em duas consultas."),
    ("O patamar mais baixo, de 2%, foi em março.", "Trata-se da segunda redução. O mínimo, de 2%, foi em março."),
])
def test_another_order_is_no_exchange(source, text):
    assert not swapped(source, text)
