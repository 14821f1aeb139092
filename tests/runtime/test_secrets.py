"""What is secret, and that it is left out."""

import json
import logging

import pytest

from kldistill.pipeline.names import overrides_name
from kldistill.runtime.secrets import Formatter, redact, redact_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("git clone https://user:t0ken@host.org/a.git", "git clone https://<credentials>@host.org/a.git"),
        ("https://ghp_0123456789@github.com/a", "https://<credentials>@github.com/a"),
        ("postgres://me:p@ss:word@db:5432/x?y=1", "postgres://<credentials>@db:5432/x?y=1"),
        ("a=http://u:p@h/,b=s3+https://k:v@h", "a=http://<credentials>@h/,b=s3+https://<credentials>@h"),
        ("https://h/f?a=1&access_token=abc&b=2", "https://h/f?a=1&access_token=<secret>&b=2"),
        ("https://h/f?X-Amz-Signature=abc def", "https://h/f?X-Amz-Signature=<secret> def"),
        ("https://host.org/a@b and mail me@host.org", "https://host.org/a@b and mail me@host.org"),
        ("https://host.org/?q=x@y#z@w", "https://host.org/?q=x@y#z@w"),
        ("loss/kl@50 = 3.2", "loss/kl@50 = 3.2"),
    ],
)
def test_credentials_of_addresses_are_left_out(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact({text: [text, (text, 1, None)]}) == {shown: [shown, [shown, 1, None]]}


@pytest.mark.parametrize(
    "name", ["MY_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "DB_PASSWORD", "db_password", "SECRET", "HF_TOKEN"]
)
def test_values_of_variables_whose_name_says_so_are_left_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, " v&lue/17 ")
    assert redact("is v&lue/17, quoted v%26lue%2F17") == f"is <{name}>, quoted <{name}>"
    monkeypatch.setenv(name, "short")
    assert redact("short") == "short"


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD_LAYOUT", "HOME"])
def test_other_variables_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "nothing-secret")
    assert redact("nothing-secret") == "nothing-secret"


def test_lines_of_json_are_read_without_what_is_secret_however_it_is_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t/ü")
    lines = [
        {"text": "nothing", "of": [1, 2.5, None]},
        {"text": "as s3cr3t/ü it stands", "of": {"s3cr3t/ü": 1}},
        {"of": ["https://me:pass@host/"]},
    ]
    wanted = [
        {"text": "nothing", "of": [1, 2.5, None]},
        {"text": "as <MY_TOKEN> it stands", "of": {"<MY_TOKEN>": 1}},
        {"of": ["https://<credentials>@host/"]},
    ]
    for ascii_alone in (True, False):
        spelt = [json.dumps(line, ensure_ascii=ascii_alone) for line in lines]
        assert redact_lines(spelt) == wanted == redact_lines([line.replace("/", "\\/").encode() for line in spelt])


def test_a_secret_inside_a_longer_one_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "abcdef")
    monkeypatch.setenv("B_KEY", "abcdefghij")
    assert redact("abcdefghij abcdef") == "<B_KEY> <A_KEY>"


def test_log_lines_and_tracebacks_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "tok-123456")
    try:
        raise ValueError("https://u:p@h said tok-123456")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "with %s", ("tok-123456",), (type(error), error, None))
    shown = Formatter("%(message)s").format(record)
    assert shown == "with <MY_TOKEN>\nValueError: https://<credentials>@h said <MY_TOKEN>"


def test_what_a_terminal_obeys_is_spelt_in_log_lines_and_tracebacks() -> None:
    try:
        raise ValueError("\x1b]0;title\x07 and \x9b2J")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "with %s", ("\u202ea\rb",), (type(error), error, None))
    shown = Formatter("%(message)s").format(record)
    assert shown == "with \\u202ea\\rb\nValueError: \\x1b]0;title\\x07 and \\x9b2J"


def test_a_runs_folder_is_not_named_by_what_is_secret() -> None:
    name = overrides_name(["model.path=https://me:t0ken@host/x", "seed=1"])
    assert "t0ken" not in name and "me" not in name.split("host")[0].replace("model", "")
    assert name == overrides_name(["model.path=https://me:another@host/x", "seed=1"]), "the same run with a new token"
