"""What tests have printed goes from process to process as UTF-8, also where it is no text that UTF-8 can hold."""

from __future__ import annotations

import pytest


def clean(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    report = yield
    report.sections = [(title, clean(text)) for title, text in report.sections]
    if clean(told := str(report.longrepr)) != told:
        report.longrepr = clean(told)
    return report
