from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.urls import without_password, without_passwords


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://bank:hunter2@db:5432/loans", "postgresql+psycopg://bank:***@db:5432/loans"),
        ("postgresql://bank@[::1]:5432/loans?sslmode=require", "postgresql://bank@[::1]:5432/loans?sslmode=require"),
        ("postgresql://:hunter2@/loans?host=/run/pg", "postgresql://***@/loans?host=/run/pg"),
        ("mysql://db/loans?user=bank&password=hunter2&charset=utf8", "mysql://db/loans?user=bank&password=***&charset=utf8"),
        ("mysql://db/loans?password=hunter&2", "mysql://db/loans?password=***&***"),
        ("mysql://db/loans?pass%77ord=hunter2", "mysql://db/loans?pass%77ord=***"),
        ("mssql+pyodbc://?odbc_connect=DRIVER%3DX%3BPWD%3Dhunter2", "mssql+pyodbc://?odbc_connect=***"),
        ("sqlite:////data/me@home/loans.db", "sqlite:////data/me@home/loans.db"),
        ("sqlite://", "sqlite://"),
        ("http://bank:hunter2@mlflow:5000/x", "http://***@mlflow:5000/x"),
        ("https://hunter2@mlflow", "https://***@mlflow"),
    ],
)  # fmt: skip
def test_all_but_the_password_is_shown(url, shown):
    assert without_password(url) == shown


@pytest.mark.parametrize("password", ["hunter2@x", "hun/ter2", "hun:ter2", "hun#ter2", "hun ter2", "@", "1/@"])
def test_a_password_that_nobody_encoded_is_hidden_to_its_last_character(password):
    assert without_password(f"postgresql://bank:{password}@db/loans") == "postgresql://bank:***@db/loans"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://bank:hunter2", "postgresql://***"),
        ("sqlserver://db;password=hunter2", "sqlserver://***"),
        ("postgresql://[::1:hunter2", "postgresql://***"),
        ("postgresql://bank:hunter?2@db/loans", "postgresql://***"),
        ("postgresql://bank@db/loans?password=hunter@2", "postgresql://***"),
        ("bank:hunter2@db/loans", "***"),
        ("hunter2", "***"),
        ("", "***"),
    ],
)
def test_what_is_no_url_shows_its_scheme_at_most(url, shown):
    assert without_password(url) == shown


def test_urls_in_a_text_are_cleaned_and_the_rest_stays():
    text = "cannot reach 'http://u:hunter2@h:5000/a?token=hunter2': see (https://docs.example/x), or ask ops@bank."
    assert (
        without_passwords(text)
        == "cannot reach 'http://***@h:5000/a?token=***': see (https://docs.example/x), or ask ops@bank."
    )
    assert without_passwords("sqlite:////a/b.db and /mlruns") == "sqlite:////a/b.db and /mlruns"


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_no_password_survives(password):
    shown = "***" if "?" in password else "u:***@h/d"
    assert without_password(f"postgresql://u:{password}@h/d") == f"postgresql://{shown}"
    for without_host in ("#" + password, "p" + password):
        assert without_password("postgresql://u:" + without_host.replace("@", "")) == "postgresql://***"
