from tasft.result.origin import Origin, origin, trained_as, tuned_name


def test_a_name_says_what_it_was_tuned_from():
    once = tuned_name("tiny", "emd_toxic50_0123abcd")
    assert once == "tiny-from_emd_toxic50_0123abcd"
    assert origin(once) == Origin("tiny", "emd_toxic50", "0123abcd")
    twice = tuned_name(once, "sft_toxic0_harmful20_89abcdef")
    assert origin(twice) == Origin("tiny", "emd_toxic50,sft_toxic0_harmful20", "89abcdef")


def test_other_names_do_not():
    assert origin("tiny") is None
    assert origin("mistral-from_scratch") is None


def test_how_a_run_was_trained():
    data = {"toxic": 50, "safe_answers": 0, "contrastive": 7, "harmful": 0, "filter": "saft"}
    assert trained_as({"loss": {"name": "emd"}, "data": data}) == "emd_toxic50_contrastive7_saft"
    assert trained_as({"loss": {"name": "sft"}, "data": data | {"filter": None}}) == "sft_toxic0_contrastive7"
