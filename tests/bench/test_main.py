import json

import pytest

from bench import __main__ as main
from bench.rows import row


def test_it_prints_the_table_and_writes_the_file(tmp_path, monkeypatch, capsys):
    found = [
        row("fast", "small", 0.5, "slow", 1.0),
        row("high", "small", 0.5, "low", 1.0, ">="),
        row("broken", "small", None, "failed: no kernel"),
    ]
    monkeypatch.setitem(main.PARTS, "step", lambda quick: found)
    monkeypatch.setattr("sys.argv", ["bench", "--quick", "--only", "step", "--out", str(tmp_path / "bench.json")])
    main.main()
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["quick"] is True
    assert written["machine"]["versions"]["torch"]
    assert [(r["part"], r["met"]) for r in written["rows"]] == [("step", True), ("step", False), ("step", None)]
    out = capsys.readouterr().out
    assert "yes" in out and "no kernel" in out


def test_the_gpu_part_wants_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench", "--only", "gpu"])
    with pytest.raises(SystemExit):
        main.main()
    assert "needs a GPU" in capsys.readouterr().err
