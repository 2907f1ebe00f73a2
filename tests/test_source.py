"""Rows from every kind of place, the sentences for every kind of mistake."""

import gzip
import json
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from tasft.errors import UserError
from tasft.schema import Source
from tasft.source import Row, cache_folder, read_rows

ROWS = [{"prompt": "Hello", "response": "Good\u2028day"}, {"prompt": "Größe?", "response": "About, 3\n"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'prompt,response\nHello,Good\u2028day\nGröße?,"About, 3\n"\n'


def rows_of(path, **source):
    return [row.values for row in read_rows(Source(path=str(path), **source), "data.safe")]


def parquet(rows=ROWS):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


CONTENTS = {
    "list.json": json.dumps(ROWS).encode(),
    "columns.json": json.dumps({"prompt": ["Hello", "Größe?"], "response": ["Good\u2028day", "About, 3\n"]}).encode(),
    "lines.json": LINES.encode(),
    "rows.jsonl": LINES.encode(),
    "blank.jsonl": ("\n" + LINES.replace("\n", "\r\n\n")).encode(),
    "bom.jsonl": ("\ufeff" + LINES).encode(),
    "bom.csv": ("\ufeff" + CSV).encode(),
    "rows.csv": CSV.encode(),
    "rows.parquet": parquet(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_kind_gives_the_same_rows_zipped_or_not(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS[name])
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(CONTENTS[name]))
    assert rows_of(tmp_path / name) == ROWS
    assert rows_of(tmp_path / f"{name}.gz") == ROWS


def test_strings_are_prompts_and_a_column_may_be_empty(tmp_path):
    strings, columns = tmp_path / "strings.json", tmp_path / "columns.json"
    strings.write_text('["Hello", "Size?"]')
    columns.write_text('{"name": "a benchmark", "instruction": ["Hello", "Size?"], "input": []}')
    assert rows_of(strings) == [{"prompt": "Hello"}, {"prompt": "Size?"}]
    assert rows_of(columns) == [{"instruction": "Hello"}, {"instruction": "Size?"}]


def test_places_count_lines_of_the_file_and_rows_from_0(tmp_path):
    for name in ("blank.jsonl", "list.json", "rows.csv", "rows.parquet"):
        (tmp_path / name).write_bytes(CONTENTS[name])

    def places(name):
        return [row.place for row in read_rows(Source(path=str(tmp_path / name)), "data.safe")]

    assert places("blank.jsonl") == ["blank.jsonl line 2", "blank.jsonl line 4"]
    assert places("list.json") == ["list.json row 0", "list.json row 1"]
    assert places("rows.csv") == ["rows.csv line 2", "rows.csv line 4"]  # the second one spans two lines
    assert places("rows.parquet") == ["rows.parquet row 0", "rows.parquet row 1"]


def test_a_jsonl_file_may_be_one_array(tmp_path):
    file = tmp_path / "red_team_attempts.jsonl"
    file.write_text('[\n{"transcript": "\\n\\nHuman: a?"},\n{"transcript": "\\n\\nHuman: b?"}\n]\n')
    rows = read_rows(Source(path=str(file)), "data.toxic_prompts")
    assert [row.values["transcript"][-2:] for row in rows] == ["a?", "b?"]
    assert rows[1].place == "red_team_attempts.jsonl row 1"


def test_a_function_gives_rows():
    source = Source(rows=[{"prompt": "Hello"}, {"prompt": "Size?"}])
    assert read_rows(source, "data.safe") == [
        Row("data.safe row 0", {"prompt": "Hello"}),
        Row("data.safe row 1", {"prompt": "Size?"}),
    ]


def test_where_keeps_rows_and_their_places(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"kind": "a", "safe": True}, {"kind": "b", "safe": False}, {"kind": "a", "safe": False}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = read_rows(Source(path=str(file), where={"kind": "a", "safe": "False"}), "data.safe")
    assert kept == [Row("rows.jsonl line 3", rows[2])]
    with pytest.raises(UserError, match=r"rows\.jsonl has no row with kind=c: mend data\.safe\.where"):
        rows_of(file, where={"kind": "c"})
    with pytest.raises(UserError, match=r"rows\.jsonl line 1 has no field 'sort', which data\.safe\.where asks for"):
        rows_of(file, where={"sort": "c"})


def test_a_long_csv_field_is_read(tmp_path):
    file = tmp_path / "long.csv"
    file.write_text("prompt\n" + "x" * 200_000 + "\n")
    assert rows_of(file) == [{"prompt": "x" * 200_000}]


MISTAKES = {
    "empty.jsonl": (b" \n", r"empty\.jsonl is empty"),
    "none.csv": (b"prompt,response\n", r"none\.csv holds no rows"),
    "none.json": (b"[]", r"none\.json holds no rows"),
    "bad.jsonl": (b'{"a": 1}\n\n{"a": }\n', r"^bad\.jsonl line 3 is not JSON: Expecting value at column 7"),
    "list.jsonl": (b'{"a": 1}\n[1]\n', r"^list\.jsonl line 2 is not a JSON object"),
    "bad.json": (b'[{"a": 1},\n {"a" 2}]', r"^bad\.json line 2 is not JSON: .* at column 7"),
    "lines.json": (b'{"a": 1}\n{"a" 2}\n', r"^lines\.json line 2 is not JSON: .* at column 6"),
    "number.json": (b"3", r"^number\.json is neither a list of rows nor an object of columns"),
    "numbers.json": (b'[{"a": 1}, 3]', r"^numbers\.json row 1 is neither an object nor a string"),
    "short.csv": (b"a,b\n1,2\n3\n", r"^short\.csv line 3 has not as many fields as the header \(2\)"),
    "long.csv": (b"a,b\n1,2,3\n", r"^long\.csv line 2 has not as many fields as the header \(2\)"),
    "quote.csv": (b'a,b\n1,"2\n', r"^quote\.csv line 1 is not CSV: unexpected end of data"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode())[:-12], r"cut\.jsonl\.gz is damaged: "),
    "body.jsonl.gz": (gzip.compress(LINES.encode())[:14] + b"\xff" * 20, r"body\.jsonl\.gz is damaged: "),
    "plain.jsonl.gz": (LINES.encode(), r"plain\.jsonl\.gz is damaged: Not a gzipped file"),
    "bad.parquet": (b"PAR1 and more", r"bad\.parquet is no parquet file"),
    "latin.jsonl": ('{"a": "ß"}'.encode("latin-1"), r"latin\.jsonl is not UTF-8 text \(byte 7\)"),
    "rows.txt": (b"Hello", r"rows\.txt: \.txt is not a kind that can be read; use \.json, \.jsonl, \.csv, \.parquet"),
    "rows": (b"Hello", r"rows: no ending is not a kind that can be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    content, sentence = MISTAKES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        rows_of(tmp_path / name)


def test_a_place_without_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^data\.safe\.path=.*/rows\.jsonl: no such file$"):
        rows_of(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=r"^data\.safe\.path=.*: a folder, not a file$"):
        rows_of(tmp_path)
    with pytest.raises(UserError, match=r"give data\.toxic_source\.path=<file> or data\.toxic_source\.id=<data set>"):
        read_rows(Source(), "data.toxic_source")


def test_text_names_the_place_and_the_field():
    row = Row("rows.jsonl line 7", {"prompt": "Hello", "response": None, "when": pyarrow})
    assert row.text("prompt") == "Hello"
    with pytest.raises(UserError, match=r"^rows\.jsonl line 7 has no field 'output' \(it has prompt, response, when\)"):
        row.text("output")
    with pytest.raises(UserError, match=r"^rows\.jsonl line 7: field 'response' is null, not text$"):
        row.text("response")
    with pytest.raises(UserError, match=r"field 'when' is <module 'pyarrow'"):
        row.text("when")


def test_a_web_address_is_downloaded_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TASFT_CACHE", str(tmp_path))
    server.handler.files = {"/data/rows.jsonl": LINES.encode(), "/rows.csv.gz": gzip.compress(CSV.encode())}
    address = f"{server.address}/data/rows.jsonl?download=true"
    assert rows_of(address) == rows_of(f"{server.address}/rows.csv.gz") == ROWS
    assert read_rows(Source(path=address), "data.safe")[1].place == "rows.jsonl line 2"
    with pytest.raises(UserError, match=r"/gone\.jsonl could not be downloaded: .* give data\.safe\.path="):
        rows_of(f"{server.address}/gone.jsonl")
    server.shutdown()
    server.server_close()
    a_year_later = time.time() + 365 * 86400
    monkeypatch.setattr(time, "time", lambda: a_year_later)
    assert rows_of(address) == ROWS
    with pytest.raises(UserError, match=r"/other\.jsonl could not be downloaded: check the address"):
        rows_of(f"{server.address}/other.jsonl")


def test_a_data_set_without_access_says_how_to_go_on(refusing_hub):
    id, sentence = refusing_hub
    with pytest.raises(UserError, match=rf"^data\.safe\.id={id} .*{sentence}.* give data\.safe\.path=<file>$"):
        read_rows(Source(id=id), "data.safe")


def test_a_hub_that_does_not_answer_is_asked_once(hub_at, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits before it tries again"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"hub cannot be reached: .* give data\.safe\.path=<file>"):
            read_rows(Source(id="some/rows"), "data.safe")


def test_offline_mode_is_the_users_to_choose(server, hub_at, monkeypatch):
    hub_at(server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub cannot be reached"):
        read_rows(Source(id="some/rows"), "data.safe")


def test_a_folder_is_a_data_set(hub_at, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(LINES)
    rows = read_rows(Source(id=str(folder)), "data.safe")
    assert [row.values for row in rows] == ROWS
    assert rows[1].place == f"{folder} row 1"
    with pytest.raises(UserError, match='Unknown split "test"'):
        read_rows(Source(id=str(folder), split="test"), "data.safe")


def test_the_cache_folder_can_be_moved(monkeypatch):
    monkeypatch.setenv("TASFT_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("TASFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/tasft")
