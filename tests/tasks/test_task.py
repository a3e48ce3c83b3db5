"""A task is rendered exactly; what is wrong with a definition is said all at once."""

import pytest

from glotlift.errors import DataError, LanguageError, TaskError
from glotlift.schema import validate
from glotlift.tasks.task import LanguagePack, Task


def definition(**changes) -> dict:
    """A small task of two labels in English and German."""
    content = {
        "name": "mood",
        "fields": ["text"],
        "labels": ["good", "bad"],
        "answer_sets": {"english": {"good": "fine", "bad": "poor"}},
        "languages": {
            "en": {
                "question": "Text: {text}",
                "cue": 'Mood: "',
                "answer_sets": {"own": {"good": "fine", "bad": "poor"}},
                "demonstrations": [{"label": "bad", "text": "It rains."}, {"label": "good", "text": "Sun!"}],
            },
            "de": {
                "question": "Text: {text}",
                "cue": "Stimmung:",
                "answer_sets": {"own": {"good": "gut", "bad": "schlecht"}},
                "demonstrations": [{"label": "good", "text": "Sonne!"}],
            },
        },
    }
    return {**content, **changes}


def build(content: dict) -> Task:
    return validate(Task, content, "task.yaml", TaskError)


def faults(content: dict) -> str:
    with pytest.raises(TaskError) as caught:
        build(content)
    return str(caught.value)


def test_a_prompt_is_demonstrations_question_and_cue():
    task = build(definition())
    assert task.prompt("en", "own", {"text": "Snow {x}"}) == (
        'Text: It rains.\nMood: "poor"\n\nText: Sun!\nMood: "fine"\n\nText: Snow {x}\nMood: "'
    )
    assert task.prompt("en", "own", {"text": "Snow"}, num_fewshot=1) == (
        'Text: It rains.\nMood: "poor"\n\nText: Snow\nMood: "'
    )
    assert task.prompt("en", "own", {"text": "Snow"}, num_fewshot=0) == 'Text: Snow\nMood: "'


def test_an_answer_is_closed_by_a_quote_only_where_the_cue_opened_one():
    assert build(definition()).preamble("de", "own") == "Text: Sonne!\nStimmung:gut\n\n"


def test_demonstrations_are_answered_in_the_chosen_words():
    assert build(definition()).preamble("de", "english") == "Text: Sonne!\nStimmung:fine\n\n"


def test_answers_come_in_label_order():
    content = definition(answer_sets={"english": {"bad": "poor", "good": "fine"}})
    assert list(build(content).answers("de", "english")) == ["good", "bad"]


def test_a_language_may_have_a_set_of_its_own_under_a_shared_name():
    content = definition()
    content["languages"]["de"]["answer_sets"]["english"] = {"good": "OK", "bad": "KO"}
    task = build(content)
    assert task.answers("de", "english") == {"good": "OK", "bad": "KO"}
    assert task.answers("en", "english") == {"good": "fine", "bad": "poor"}


def test_what_is_not_there_is_named_with_what_is():
    task = build(definition())
    with pytest.raises(LanguageError, match="task 'mood' has no prompts in 'sw'; it has: en de"):
        task.prompt("sw", "own", {"text": ""})
    with pytest.raises(TaskError, match="task 'mood', de: no answer set 'ox'; expected english or own"):
        task.answers("de", "ox")
    with pytest.raises(TaskError, match="task 'mood', de: got num_fewshot 2, expected at most 1"):
        task.prompt("de", "own", {"text": ""}, num_fewshot=2)


def test_gold_may_be_an_id_or_a_word_of_any_set():
    task = build(definition())
    assert [task.label_of("de", word) for word in ("bad", "schlecht", "poor")] == ["bad"] * 3
    with pytest.raises(DataError, match="unknown label 'gut'; expected one of: good, bad, fine, poor$"):
        task.label_of("en", "gut")  # a word of another language


def test_a_gold_word_that_stands_for_two_labels_is_refused():
    """A set with the words turned round is a fair control, but its words are no gold labels."""
    content = definition()
    content["languages"]["de"]["answer_sets"]["turned"] = {"good": "schlecht", "bad": "gut"}
    task = build(content)
    with pytest.raises(DataError, match="label 'gut' stands for bad and good in different answer sets, expected ids"):
        task.label_of("de", "gut")
    assert task.label_of("de", "good") == "good"


def test_two_labels_with_the_same_word():
    content = definition(answer_sets={"flat": {"good": "so", "bad": "so"}})
    assert "answer_sets.flat: 'good' and 'bad' have the same word 'so', expected two words" in faults(content)


# --- templates and preambles


def only(**pack) -> Task:
    """Return the small task in English, with other texts."""
    return build(definition(languages={"en": {"answer_sets": {"own": {"good": "fine", "bad": "poor"}}, **pack}}))


def test_a_template_is_question_and_cue_in_one():
    task = only(template='Text: {text} {{x}}\n\nMood: "', demonstrations=[{"label": "bad", "text": "It rains."}])
    assert task.prompt("en", "own", {"text": "Snow"}) == (
        'Text: It rains. {x}\n\nMood: "poor"\n\nText: Snow {x}\n\nMood: "'
    )
    assert only(template="{text} is").preamble("en", "own") == ""


def test_braces_of_a_cue_are_literal():
    task = only(question="{text}", cue='{"mood": "', demonstrations=[{"label": "bad", "text": "{rain}"}])
    assert task.prompt("en", "own", {"text": "{snow}"}) == '{rain}\n{"mood": "poor"\n\n{snow}\n{"mood": "'


VERBATIM = 'It rains.\r\n  Mood: "poor" \n\n{text}\t\n'


def test_a_preamble_is_used_byte_for_byte():
    task = only(template="{text} is", preamble=VERBATIM)
    assert task.prompt("en", "own", {"text": "Snow"}) == VERBATIM + "Snow is"
    assert task.prompt("en", "english", {"text": "Snow"}) == VERBATIM + "Snow is"
    assert task.prompt("en", "own", {"text": "Snow"}, num_fewshot=0) == "Snow is"
    assert task.shown("en") == ()


def test_a_preamble_for_each_answer_set():
    task = only(template="{text} is", preamble={"own": "Rain is poor \n"})
    assert task.preamble("en", "own") == "Rain is poor \n"
    with pytest.raises(TaskError, match="task 'mood', en: no preamble for answer set 'english'; it has own"):
        task.preamble("en", "english")
    assert task.preamble("en", "english", num_fewshot=0) == ""


def test_a_preamble_for_another_languages_words():
    content = definition()
    german = content["languages"]["de"]
    del german["demonstrations"]
    german["preamble"] = {"own": "Regen: schlecht\n", "in:en": "Regen: poor\n"}
    task = build(content)
    assert task.prompt("de", "in:en", {"text": "Schnee"}) == "Regen: poor\nText: Schnee\nStimmung:"
    assert task.preamble("de", "in:de") == "Regen: schlecht\n"  # the same words as `own`
    with pytest.raises(TaskError, match="no preamble for answer set 'english'; it has own or in:en"):
        task.preamble("de", "english")
    german["preamble"] = {"own": "Regen: schlecht\n", "in:de": "Regen: also schlecht\n"}
    task = build(content)
    assert task.preamble("de", "in:de") == "Regen: also schlecht\n"
    with pytest.raises(TaskError, match="no preamble for answer set 'in:en'; it has own or in:de"):
        task.preamble("de", "in:en")


def test_a_preamble_cannot_be_cut_or_drawn():
    task = only(template="{text} is", preamble=VERBATIM)
    with pytest.raises(TaskError, match="'mood', en: got num_fewshot 1, expected none for a verbatim preamble"):
        task.preamble("en", "own", 1)
    with pytest.raises(TaskError, match="'mood', en: got demo_seed 0, expected none for a verbatim preamble"):
        task.preamble("en", "own", demo_seed=0)


# --- the pool


def pooled(labels: str = "gb", pool: str = "ggggbb") -> Task:
    """Return a task whose examples have these labels; their texts are numbers."""
    names = {"g": "good", "b": "bad"}
    examples = [{"label": names[letter], "text": str(n)} for n, letter in enumerate(labels + pool)]
    return only(template="{text} is", demonstrations=examples[: len(labels)], pool=examples[len(labels) :])


def texts(shown) -> list[str]:
    return [each.fields["text"] for each in shown]


def test_the_pool_serves_what_the_demonstrations_do_not():
    task = pooled()
    assert texts(task.shown("en")) == ["0", "1"]
    assert texts(task.shown("en", 1)) == ["0"]
    assert texts(task.shown("en", 4)) == ["0", "1", "2", "3"]
    assert task.preamble("en", "own", 3) == "0 isfine\n\n1 ispoor\n\n2 isfine\n\n"
    assert task.shown("en", 0) == ()
    with pytest.raises(TaskError, match="task 'mood', en: got num_fewshot 9, expected at most 8"):
        task.shown("en", 9)


@pytest.mark.parametrize("count", range(1, 7))
def test_a_seed_draws_evenly_over_the_labels(count):
    """Five good examples and three bad ones: up to six, the counts differ by one at most."""
    task = pooled()
    for seed in range(20):
        shown = task.shown("en", count, seed)
        n_good = sum(each.label == "good" for each in shown)
        assert len(set(texts(shown))) == count
        assert abs(n_good - (count - n_good)) <= 1


def test_a_seed_draws_the_same_again_and_another_seed_another():
    task = pooled()
    draws = [tuple(texts(task.shown("en", None, seed))) for seed in range(30)]
    assert draws == [tuple(texts(task.shown("en", None, seed))) for seed in range(30)]
    assert all(len(draw) == 2 for draw in draws)
    assert len(set(draws)) > 10
    assert {text for draw in draws for text in draw} == set("01234567")  # the demonstrations are drawn from, too
    orders = {tuple(each.label for each in task.shown("en", None, seed)) for seed in range(30)}
    assert orders == {("good", "bad"), ("bad", "good")}
    assert any(list(draw) != sorted(draw) for draw in draws)  # shuffled, not in the order of the file


def test_a_seed_draws_parallel_examples_in_all_languages():
    content = definition()
    for code in ("en", "de"):
        labels = ["good", "bad"] * 3
        examples = [{"label": label, "text": f"{code}{n}"} for n, label in enumerate(labels)]
        content["languages"][code] |= {"demonstrations": examples[:2], "pool": examples[2:]}
    task = build(content)
    for seed in range(5):
        english, german = (texts(task.shown(code, 4, seed)) for code in ("en", "de"))
        assert [text[2:] for text in english] == [text[2:] for text in german]


# --- other languages' words


def test_answers_in_another_language():
    task = build(definition())
    assert task.answers("en", "in:de") == {"good": "gut", "bad": "schlecht"}
    assert task.prompt("de", "in:en", {"text": "Schnee"}) == "Text: Sonne!\nStimmung:fine\n\nText: Schnee\nStimmung:"
    with pytest.raises(LanguageError, match="task 'mood' has no prompts in 'sw'; it has: en de"):
        task.answers("de", "in:sw")
    content = definition()
    del content["languages"]["de"]["answer_sets"]
    with pytest.raises(TaskError, match="task 'mood', de: no answer set 'own'; expected english"):
        build(content).answers("en", "in:de")


FAULTS = {
    "fields": ({"fields": ["text", "text"]}, "fields: got ['text', 'text'], expected distinct names"),
    "set named as another language's words": (
        {"answer_sets": {"in:fr": {"good": "bon", "bad": "mauvais"}}},
        "answer_sets.in:fr: got a name that begins with 'in:', expected another name, since `in:<code>` is the own",
    ),
    "labels": ({"labels": ["good", "good"]}, "labels: got ['good', 'good'], expected distinct ids"),
    "one label": ({"labels": ["good"]}, "`labels`: got ['good'], expected at least 2 items"),
    "missing word": (
        {"answer_sets": {"x": {"good": "a"}}},
        "answer_sets.x: got words for ['good'], expected ['bad', 'goo",
    ),
    "field in a word": (
        {"answer_sets": {"x": {"good": "{text}!", "bad": "b"}}},
        "answer_sets.x: the word of 'good' is '{text}!', expected a word without the field {text}",
    ),
    "empty word": ({"answer_sets": {"x": {"good": "a", "bad": " "}}}, "answer_sets.x: the word of 'bad' is empty"),
    "boolean": ({"labels": ["good", False]}, "`labels.1`: got the YAML boolean False; put the word in quotes"),
    "name": ({"name": "my task"}, "`name`: got the name 'my task', expected letters of ASCII"),
    "no languages": ({"languages": {}}, "`languages`: got {}, expected at least 1 item"),
    "unknown key": ({"lables": []}, "unknown key `lables` (did you mean 'labels'?)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_definition_at_fault(fault):
    changes, message = FAULTS[fault]
    assert message in faults(definition(**changes))


PACK_FAULTS = {
    "field": ({"question": "Text: {txt}"}, "languages.de.question: got the fields ['txt'], expected ['text']"),
    "brace": (
        {"question": "Text: {text} {"},
        "languages.de.question: Single '{' encountered in format string; write {{",
    ),
    "field in the cue": (
        {"cue": "Is {text} good? "},
        "languages.de.cue: got the field {text}, expected it in the question; a cue is written as it is",
    ),
    "field in a word": (
        {"answer_sets": {"own": {"good": "gut", "bad": "{text}"}}},
        "languages.de.answer_sets.own: the word of 'bad' is '{text}', expected a word without the field {text}",
    ),
    "no cue": ({"cue": ""}, "`languages.de.cue`: got '', expected at least 1 character"),
    "key": ({"ceu": "x"}, "unknown key `languages.de.ceu` (did you mean 'cue'?)"),
    "label": (
        {"demonstrations": [{"label": "meh", "text": "x"}]},
        "languages.de.demonstrations[1]: got label 'meh', expected good or bad",
    ),
    "demonstration": (
        {"demonstrations": [{"label": "bad", "txt": "x"}]},
        "languages.de.demonstrations[1]: got the fields ['txt'], expected ['text']",
    ),
    "pool": ({"pool": [{"label": "meh", "text": "x"}]}, "languages.de.pool[1]: got label 'meh', expected good or bad"),
    "template beside question": (
        {"template": "{text}"},
        "languages.de: got question and cue and template, expected question and cue, or template",
    ),
    "no question": ({"question": None}, "languages.de: got cue, expected question and cue, or template"),
    "nothing": (
        {"question": None, "cue": None},
        "languages.de: got no question, expected question and cue, or template",
    ),
    "template": (
        {"question": None, "cue": None, "template": "{txt}"},
        "languages.de.template: got the fields ['txt'], expected ['text']",
    ),
    "format": (
        {"question": "Text: {text:d}"},
        "languages.de.question: Unknown format code 'd' for object of type 'str'; write fields as {text}",
    ),
    "conversion": ({"question": "{text!x}"}, "languages.de.question: Unknown conversion specifier x; write fields as"),
    "preamble": ({"preamble": "x"}, "languages.de: got a preamble and demonstrations, expected one of them"),
    "preamble and pool": (
        {"preamble": "x", "demonstrations": [], "pool": [{"label": "bad", "text": "x"}]},
        "languages.de: got a preamble and demonstrations, expected one of them",
    ),
    "preamble for no set": (
        {"preamble": {"owm": "x"}, "demonstrations": []},
        "languages.de.preamble: got owm, expected answer sets: english, own or in:<language of the task>",
    ),
    "preamble for the words of no language of the task": (
        {"preamble": {"own": "x", "in:en": "y", "in:fr": "z"}, "demonstrations": []},
        "languages.de.preamble: got in:fr, expected answer sets: english, own or in:<language of the task>",
    ),
    "set named as another language's words": (
        {"answer_sets": {"own": {"good": "gut", "bad": "schlecht"}, "in:en": {"good": "OK", "bad": "KO"}}},
        "languages.de.answer_sets.in:en: got a name that begins with 'in:', expected another name",
    ),
}


@pytest.mark.parametrize("fault", PACK_FAULTS)
def test_a_language_at_fault(fault):
    changes, message = PACK_FAULTS[fault]
    content = definition()
    content["languages"]["de"] |= changes
    assert message in faults(content)


def test_all_faults_come_together():
    content = definition(labels=["good", "bad", "bad"], extra=1)
    content["languages"]["de"]["cue"] = ""
    text = faults(content)
    assert text.startswith("task.yaml: 2 faults:")
    assert "`languages.de.cue`" in text
    assert "`extra`" in text
    content = definition(answer_sets={"a": {"good": "x", "bad": "x"}, "b": {"good": ""}})
    content["languages"]["en"]["question"] = "no field"
    text = faults(content)
    assert all(part in text for part in ("answer_sets.a", "answer_sets.b", "languages.en.question"))


CUTS = {
    'Review: {text}\nSentiment: "': ("Review: {text}", '\nSentiment: "'),
    "{text}\n\nIs it good?\nAnswer:": ("{text}\n\nIs it good?", "\nAnswer:"),
    "{text}\nAnswer:\n": ("{text}\nAnswer:", "\n"),
    "First\n{text} is": ("First\n{text} is", ""),
    'As JSON: {text}\n{{"label": "': ("As JSON: {text}", '\n{{"label": "'),
    '{text}\nin {{braces}}:\n"': ("{text}\nin {{braces}}:", '\n"'),
}


@pytest.mark.parametrize("template", CUTS)
def test_a_template_is_cut_at_the_last_line_break_behind_the_last_field(template):
    pack = LanguagePack.model_validate({"template": template, "answer_sets": {"own": {"a": "x", "b": "y"}}})
    assert pack.question_and_cue == CUTS[template]
    assert pack.layout == template
    task = Task.model_validate({"name": "t", "fields": ["text"], "labels": ["a", "b"], "languages": {"en": pack}})
    fields = {"text": "It\nis {so}"}
    assert "".join(task.question_and_cue("en", fields)) == task.question("en", fields) == template.format_map(fields)


def test_question_and_cue_are_cut_between_the_two():
    pack = LanguagePack.model_validate({"question": "Q: {text}", "cue": "My\n{answer}:"})
    assert pack.question_and_cue == ("Q: {text}", "\nMy\n{{answer}}:")
