"""Rows as examples: fields, transcripts, messages, and what is rejected."""

import pytest

from tasft.data.example import Example, Rejected, example, prompt_of, transcript_turns
from tasft.errors import UserError
from tasft.schema import Fields
from tasft.source import Row

FIELDS = {"prompt": "instruction", "response": "output", "input": "input"}


def made(values, columns=FIELDS, toxic=False):
    return example(Row("rows.jsonl line 7", values), Fields(**columns), toxic)


def test_fields_are_mapped():
    values = {"instruction": "Sort.", "input": "b, a", "output": "a, b", "text": "unused"}
    assert made(values) == Example("Sort.", "a, b", False, "rows.jsonl line 7", "b, a")
    assert made(values, {"prompt": "input", "response": "text"}, toxic=True) == Example(
        "b, a", "unused", True, "rows.jsonl line 7"
    )


def test_texts_are_left_as_they_are():
    assert made({"instruction": " Sort.\n", "output": "\na, b "}) == Example(
        " Sort.\n", "\na, b ", False, "rows.jsonl line 7"
    )


@pytest.mark.parametrize("values", [{}, {"input": ""}, {"input": None}], ids=["missing", "empty", "null"])
def test_the_input_is_optional(values):
    assert made({"instruction": "Sort.", "output": "a"} | values) == Example("Sort.", "a", False, "rows.jsonl line 7")


def test_empty_texts_are_rejected_with_a_reason():
    assert made({"instruction": " \n", "output": "a"}) == Rejected("rows.jsonl line 7", "empty prompt")
    assert made({"instruction": "Sort.", "output": "\t"}) == Rejected("rows.jsonl line 7", "empty response")


def test_a_missing_column_is_an_error_of_the_config():
    with pytest.raises(UserError, match=r"rows\.jsonl line 7 has no field 'output'"):
        made({"instruction": "Sort.", "response": "a"})
    with pytest.raises(UserError, match=r"'output' is null, not text"):
        made({"instruction": "Sort.", "output": None})
    with pytest.raises(UserError, match=r"must name prompt and response, or transcript, or messages"):
        made({"instruction": "Sort."}, {"prompt": "instruction"})


def dialogue(*turns):
    return "".join(f"\n\nHuman: {asked}\n\nAssistant: {answered}" for asked, answered in turns)


def test_the_last_answer_of_a_transcript_is_the_response():
    columns = {"transcript": "chosen"}
    one = made({"chosen": dialogue(("Hi", "Hello"))}, columns, toxic=True)
    assert one == Example("Hi", "Hello", True, "rows.jsonl line 7")
    three = made(
        {"chosen": dialogue(("Hi", "Hello"), ("Sort:\n\nb, a", "a, b"), ("Thanks", "My\n\npleasure"))}, columns
    )
    assert (three.prompt, three.response) == ("Thanks", "My\n\npleasure")
    assert three.history == (("Hi", "Hello"), ("Sort:\n\nb, a", "a, b"))


def test_markers_count_only_at_the_start_of_a_paragraph():
    said = "He said: Human: hello, Assistant: good day\nHuman: bye"
    assert transcript_turns(dialogue((said, said))) == ((said, said),)


def test_two_answers_in_a_row_are_one():
    assert transcript_turns("\n\nHuman: Hi\n\nAssistant: Hello\n\nAssistant: there") == (("Hi", "Hello\n\nthere"),)


MALFORMED = [
    "",
    "Hello",
    "Human: Hi\n\nAssistant: Hello",
    "\n\nAssistant: Hello\n\nHuman: Hi\n\nAssistant: Hello",
    "\n\nHuman: Hi",
    "\n\nHuman: Hi\n\nHuman: you\n\nAssistant: Hello",
    "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye",
]


@pytest.mark.parametrize("text", MALFORMED)
def test_other_texts_are_no_transcripts(text):
    assert made({"chosen": text}, {"transcript": "chosen"}) == Rejected(
        "rows.jsonl line 7", "not a Human/Assistant transcript"
    )


def test_a_transcript_without_a_last_answer_is_rejected():
    assert made({"chosen": "\n\nHuman: Hi\n\nAssistant:"}, {"transcript": "chosen"}) == Rejected(
        "rows.jsonl line 7", "empty response"
    )


def message(role, content):
    return {"role": role, "content": content}


def test_messages_are_turns_and_a_system_prompt_is_left_out():
    messages = [
        message("system", "Be brief."),
        message("user", "Hi"),
        message("assistant", "Hello"),
        message("user", "Bye"),
        message("assistant", "See you"),
    ]
    assert made({"m": messages}, {"messages": "m"}) == Example(
        "Bye", "See you", False, "rows.jsonl line 7", history=(("Hi", "Hello"),)
    )
    for wrong in ([], messages[:-1], messages[1:2] * 2, messages[2:4]):
        assert made({"m": wrong}, {"messages": "m"}) == Rejected(
            "rows.jsonl line 7", "no pair of a user's and an assistant's message at the end"
        )


@pytest.mark.parametrize(
    "value", ["Hi", None, [1], [{"role": "user"}], [message("user", None), message("assistant", "")]]
)
def test_messages_of_another_shape_are_an_error(value):
    with pytest.raises(UserError, match=r"line 7: field 'm' is not a list of \{role, content\} messages"):
        made({"m": value}, {"messages": "m"})


def test_the_prompt_is_the_first_thing_that_the_human_says():
    row = Row("rows.jsonl line 7", {"instruction": "Sort.", "chosen": dialogue(("Hi", "Hello"), ("Bye", "See you"))})
    assert prompt_of(row, Fields(**FIELDS)) == "Sort."
    assert prompt_of(row, Fields(transcript="chosen")) == "Hi"
    unanswered = Row("rows.jsonl line 8", {"chosen": "\n\nHuman: Hi\n\nHuman: you?"})
    assert prompt_of(unanswered, Fields(transcript="chosen")) == "Hi"
    reason = "not a Human/Assistant transcript"
    assert prompt_of(row, Fields(transcript="instruction")) == Rejected("rows.jsonl line 7", reason)
    # fields given to a source that names a transcript do not take its place
    both = Fields(transcript="rejected", prompt="instruction", response="chosen")
    for read in (lambda: prompt_of(row, both), lambda: example(row, both, toxic=False)):
        with pytest.raises(UserError, match=r"no field 'rejected', the transcript .* drop it with transcript: null"):
            read()
    with pytest.raises(UserError, match=r"must name prompt or transcript"):
        prompt_of(row, Fields(response="chosen"))
