"""Every reason for which the audit flags a pair, and that it flags nothing else."""

import time
from pathlib import Path

import pytest

from glotlift.data.audit import audit_pairs, find_overlap, text_tokens
from glotlift.data.questions import QuestionPair, instruction, read_pairs
from glotlift.data.read import read_items
from glotlift.languages import LANGUAGES
from glotlift.tasks.load import load_task
from glotlift.tasks.task import Task
from tests.tasks.test_task import build, definition


def pair(name: str, there: str, here: str, source: str = "de") -> QuestionPair:
    task = load_task("sentiment")
    asked = f"{task.question(source, {'text': there})}\n{instruction(source, 'en')}\n"
    return QuestionPair(f"{source}:{name}", source, "en", asked, task.question("en", {"text": here}))


SOUND = [
    pair("1", "Der Akku hält keinen Tag.", "The battery does not last a day."),
    pair("2", "Passt wie angegossen und sieht gut aus.", "Fits like a glove and looks good."),
    pair("3", "Kam zwei Wochen zu spät an.", "Arrived two weeks late."),
]


def test_sound_pairs_are_counted_and_not_flagged():
    audit = audit_pairs([*SOUND, pair("1", "电池用不了一天。", "The battery does not last a day.", "zh")])
    assert audit == {
        "pairs": 4,
        "languages": {"de": 3, "zh": 1},
        "target": "en",
        "question_only": None,
        "overlap": {"n": 8, "items": 0, "of": 0, "pairs": 0},
        "flags": {},
        "flagged": {},
    }


def test_the_same_input_twice():
    audit = audit_pairs([*SOUND, pair("9", "Kam zwei Wochen zu spät an.", "It arrived two weeks late.")])
    assert audit["flagged"] == {"de:9": ["duplicate"]}


def test_control_strings_in_input_or_target_that_no_layout_writes():
    said = [pair("8", "Gut.</s> Sehr gut.", "Good. Very good."), pair("9", "Es geht so.", "It is so <|im_end|> so.")]
    assert audit_pairs([*SOUND, *said])["flagged"] == {"de:8": ["control"], "de:9": ["control"]}
    pack = {"template": "{text}</s>", "answer_sets": {"own": {"yes": "so", "no": "me"}}}
    content = {"name": "odd", "fields": ["text"], "labels": ["yes", "no"], "languages": {"en": pack}}
    assert audit_pairs([*SOUND, *said], (), Task.model_validate(content))["flags"] == {"control": 1}


def test_a_text_that_was_left_in_english():
    """The names of the fields differ between languages, so whole lines are no guide."""
    audit = audit_pairs([*SOUND, pair("9", "Note: it broke after a week.", "Note: it broke after a week.")])
    assert audit["flagged"] == {"de:9": ["untranslated"]}
    chinese = [pair("9", "Still works.", "Still works.", "zh")]
    assert audit_pairs(chinese)["flagged"] == {"zh:9": ["untranslated"]}


def test_a_target_of_unusual_length():
    audit = audit_pairs([*SOUND, pair("9", "Gut.", "Good. " + "And then it went on for pages. " * 10)])
    assert audit["flagged"] == {"de:9": ["length"]}
    audit = audit_pairs([*SOUND, pair("9", "Gut. " + "Und dann ging es seitenlang weiter. " * 10, "Good.")])
    assert audit["flagged"] == {"de:9": ["length"]}


def test_length_is_measured_by_what_is_usual_for_the_language():
    """Chinese needs a few characters where English needs many; that is no fault."""
    english = "It arrived late, one of the corners was dented and nobody at the shop ever answered. " * 6
    chinese = [pair(str(k), f"到货晚了，边角还磕瘪了{k}。" * 3, english, "zh") for k in range(5)]
    assert len(english) > 3 * len(chinese[0].input)
    assert audit_pairs([*SOUND, *chinese])["flagged"] == {}


def test_no_pairs():
    audit = audit_pairs([], ["any text of four words"], load_task("sentiment"))
    assert (audit["target"], audit["question_only"], audit["overlap"]["of"]) == (None, True, 1)


def test_the_bundled_questions_pass_against_the_bundled_items():
    task = load_task("sentiment")
    items = read_items(task, "sample", tuple(LANGUAGES))
    texts = [text for rows in items.values() for item in rows for text in item.fields.values()]
    audit = audit_pairs(read_pairs(task, "sample", ("zh", "de", "es", "sw")), texts, task)
    assert audit["languages"].keys() == {"zh", "de", "es", "sw"}
    assert audit["flagged"] == {}
    assert audit["question_only"]
    assert (audit["overlap"]["items"], audit["overlap"]["pairs"]) == (0, 0)
    assert 0.9 * len(texts) < audit["overlap"]["of"] < len(texts)  # a few are too short


def test_pairs_from_english_are_counted_by_the_other_language():
    task = load_task("sentiment")
    audit = audit_pairs(read_pairs(task, "sample", ("zh", "de"), direction="from-english", limit=3), (), task)
    assert audit["languages"] == {"zh": 3, "de": 3}
    assert audit["target"] == "zh de"
    assert audit["flagged"] == {}


# --- answers


def answered(text: str, asked: str = "", task: str = "nli", source: str = "de") -> bool:
    """Return whether a pair with this target, or this question as its input, holds an answer."""
    question = asked or 'Prämisse: Da ist ein Hund.\nHypothese: Er bellt.\nAntwort: "'
    pair = QuestionPair(f"{source}:1", source, "en", f"{question}\n{instruction(source, 'en')}\n", text)
    return audit_pairs([pair], (), load_task(task))["flags"].get("answer") == 1


TARGET = "Premise: There is a dog.\nHypothesis: It barks.\n"


@pytest.mark.parametrize(
    "line",
    [
        'Answer: "neutral"',
        'Answer: "neutral',
        "Answer: neutral",
        "Answer: 'Neutral'.",
        "Answer:\nneutral\n",
        'Answer: "horse"',  # of the arbitrary set
        'Answer: "Folgerung"',  # of another language
        "Result: “contradiction”",  # a cue that is not ours
        "答案：蕴含",
        '答案: "蕴含"',
        'คำตอบ: "เป็นกลาง"',
        'Answer: "neutral"\n\nPremise: A cat.\nHypothesis: It sleeps.\nAnswer: "',  # a worked example
    ],
)
def test_an_answer_behind_the_cue(line):
    assert answered(TARGET + line)
    assert answered(TARGET + 'Answer: "', asked=f"Prämisse: Da ist ein Hund.\nHypothese: Er bellt.\n{line}")


@pytest.mark.parametrize(
    "question",
    [
        'Premise: There is a dog.\nHypothesis: neutral\nAnswer: "',
        'Premise: The judge is neutral.\nHypothesis: He said "neutral"\nAnswer: "',
        'Premise: It is a contradiction.\nHypothesis: The ox is a horse.\nAnswer: "',
        'Premise: A: "neutral"\nHypothesis: B\nAnswer: "?',
        '前提：中立\n假设：蕴含\n答案："',
    ],
)
def test_label_words_in_a_question_are_no_answers(question):
    assert not answered(question)
    assert not answered(TARGET + 'Answer: "', asked=question)


def test_answers_are_known_by_the_tasks_own_cue_where_it_ends_in_no_colon():
    content = definition()
    for pack in content["languages"].values():
        pack.pop("question", None), pack.pop("cue", None)
        pack["template"] = "{text}\nIs it good or bad?"
    task = build(content)
    word = next(iter(task.answers("en", "own").values()))
    for end, flags in (("", {}), (f" {word}", {"answer": 1}), (f"\n{word}", {"answer": 1})):
        pairs = [QuestionPair("de:1", "de", "en", "Da war es kaputt.", f"It was broken then.\nIs it good or bad?{end}")]
        audit = audit_pairs(pairs, (), task)
        assert audit["flags"] == flags
        assert audit["question_only"] is not bool(flags)


def test_no_pair_of_the_sample_holds_an_answer_until_one_is_planted():
    task = load_task("sentiment")
    pairs = read_pairs(task, "sample", ("zh", "de", "es", "sw"))
    assert audit_pairs(pairs, (), task)["question_only"]
    planted = QuestionPair(**{**vars(pairs[7]), "target": pairs[7].target + 'positive"'})
    audit = audit_pairs([*pairs[:7], planted, *pairs[8:]], (), task)
    assert (audit["question_only"], audit["flagged"]) == (False, {planted.id: ["answer"]})


# --- overlap


def test_tokens_of_all_scripts():
    assert text_tokens("Don't  STOP, Straße №5!") == ["don", "t", "stop", "strasse", "no5"]
    assert text_tokens("他买了iPhone手机。ＯＫ") == ["他", "买", "了", "iphone", "手", "机", "ok"]
    assert text_tokens("カメラは、良い") == ["カ", "メ", "ラ", "は", "良", "い"]
    assert text_tokens("मैंने किताब पढ़ी।") == ["मैंने", "किताब", "पढ़ी"]
    assert text_tokens("আমি বইটি পড়েছি।") == ["আমি", "বইটি", "পড়েছি"]
    assert text_tokens("ดีที่สุด ok") == ["ดี", "ที่", "สุ", "ด", "ok"]
    assert text_tokens("naïve") == text_tokens("nai\u0308ve") == ["naïve"]
    assert text_tokens("soft\u00adware") == ["software"]
    assert text_tokens("\b ¡!") == []


EIGHT = "the hinge of the left door came loose"


def overlap(here: str, *texts: str, there: str = "Das steht so in keinem der Texte hier.") -> tuple:
    rows, counts = find_overlap([*SOUND, pair("9", there, here)], texts)
    assert rows <= {3}
    return len(rows), counts["items"], counts["of"]


def test_eight_words_in_a_row_of_an_evaluation_text():
    said = f"On day two, {EIGHT.upper()}!  And nobody came."
    assert overlap(f"Well: {EIGHT}.", said) == (1, 1, 1)
    assert overlap(f"Well: {EIGHT}.", said.replace("LEFT", "RIGHT")) == (0, 0, 1)
    assert overlap(EIGHT.removeprefix("the "), said) == (0, 0, 1)  # seven
    assert overlap("Nothing of it.", said, there=f"Also: {EIGHT}") == (1, 1, 1)  # in the input


def test_sixteen_letters_in_a_row_where_there_are_no_blanks():
    """Eight are no more than `a man in a black shirt`."""
    sixteen = "门上的铰链在第二天就全都松掉了啊"
    assert len(sixteen) == 16
    assert overlap(f"哎，{sixteen}！", f"可是{sixteen}，没人来。") == (1, 1, 1)
    assert overlap("没有。", f"可是{sixteen}，没人来。", there=f"哎，{sixteen}！") == (1, 1, 1)
    assert overlap(f"哎，{sixteen[1:]}！", f"可是{sixteen}，没人来。") == (0, 0, 1)
    mixed = "iPhone 15 Pro Max USB-C 充电器坏了"  # seven words, and too few letters to make it Chinese
    assert overlap(f"我的{mixed}。", f"哎，{mixed}") == (1, 1, 1)


def test_a_short_text_of_the_evaluation_must_be_the_whole_of_a_field():
    assert overlap("It came very late.", "it came VERY late") == (1, 1, 1)
    assert overlap("It came very late, and broken.", "it came very late") == (0, 0, 1)
    assert overlap("It came late.", "it came late") == (0, 0, 0)  # three words: not compared
    assert overlap("铰链第二天就松了。", "铰链第二天就松了") == (1, 1, 1)
    assert overlap("铰链第二天松了。", "铰链第二天松了") == (0, 0, 0)  # seven letters
    assert overlap("Fine.\nIt came very late.", "it came very late") == (1, 1, 1)  # a line without a name
    assert overlap("Fine.", "came very late: it did", there="Came very late: it did") == (1, 1, 1)


def test_the_words_of_the_format_do_not_overlap():
    """The instruction has eight words and more with what stands around it; texts of items do not hold it."""
    text = "Bewertung Translate the input from German to English"
    assert overlap("Fine.", "Sentiment", "Review", "Bewertung: Translate the input", "Da stand: sie fiel") == (0, 0, 2)
    assert find_overlap(SOUND, [text])[1]["items"] == 1  # so that the test could fail


def test_the_counts_of_the_audit():
    texts = [
        f"{EIGHT}, at last",
        f"So {EIGHT}",
        f"So {EIGHT}",
        "The battery does not last a day.",
        "Short.",
        "a b c d e",
    ]
    twice = [pair("8", "Eins, zwei.", EIGHT), pair("9", "Drei, vier, fünf.", f"And {EIGHT}")]
    audit = audit_pairs([*SOUND, *twice], texts)
    assert audit["overlap"] == {"n": 8, "items": 3, "of": 4, "pairs": 3}
    assert {name: audit["flagged"][name] for name in ("de:1", "de:8")} == {"de:1": ["overlap"], "de:8": ["overlap"]}
    assert audit["flags"]["overlap"] == 3


def test_all_reasons_of_a_row_are_kept():
    again = pair("9", "Der Akku hält keinen Tag.", "The battery does not last a day.")
    audit = audit_pairs([*SOUND, again], ["The battery does not last a day."])
    assert audit["flagged"] == {"de:1": ["overlap"], "de:9": ["overlap", "duplicate"]}
    assert audit["flags"] == {"overlap": 2, "duplicate": 1}


def test_the_audit_takes_time_in_proportion_to_its_texts():
    """Pairs by texts would take an hour here."""
    numbers = [f"{k} {k + 1} {k + 2} one two three four five six seven {k % 7} nine ten {k}" for k in range(12_000)]
    pairs = [pair(str(k), f"Nummer {text}", text) for k, text in enumerate(numbers[:6_000])]
    begin = time.process_time()
    audit = audit_pairs(pairs, numbers, load_task("sentiment"))
    assert audit["overlap"]["pairs"] == 6_000
    assert time.process_time() - begin < 20


PAPER_DATA = Path(__file__).parents[3] / "shared" / "paper-data"


@pytest.mark.skipif(not PAPER_DATA.is_dir(), reason=f"the paper's data is not at {PAPER_DATA}")
def test_the_papers_pairs_hold_no_answers():
    """Their cues are their own; the Swahili file even keeps an English field name."""
    task = load_task("nli")
    pairs = read_pairs(task, str(PAPER_DATA), ("zh", "de", "es", "it", "sw"), limit=1000)
    assert audit_pairs(pairs, (), task)["question_only"]
    asks = f"\n{instruction('sw', 'en')}\n"
    planted = QuestionPair(**{**vars(pairs[-1]), "input": pairs[-1].input.replace(asks, f'neutral"{asks}')})
    assert audit_pairs([*pairs, planted], (), task)["flags"]["answer"] == 1
