from bench import rows


def test_ratios_are_medians_of_rounds(monkeypatch):
    clock = iter([9, 9, 2, 4, 1, 3, 1, 2])  # (a, b) per round, in turning order; the first warms up

    monkeypatch.setattr(rows, "cpu_seconds", lambda call: next(clock))
    found = rows.time_ratios({"a": print, "b": print}, "a", repeats=3, title="")
    # rounds: a 2 b 4, then reversed b 1 a 3, then a 1 b 2
    assert found == {"a": 1.0, "b": 2.0}


def test_a_target_is_met_from_its_own_side():
    assert rows.row("", "", 1.0, "", 1.0)["met"] is True
    assert rows.row("", "", 1.1, "", 1.0)["met"] is False
    assert rows.row("", "", 1.1, "", 1.0, ">=")["met"] is True
    assert rows.row("", "", 1.1, "")["met"] is None
