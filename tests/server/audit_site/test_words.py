"""An entry in one line, whatever its body holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_core.trust.entry import KINDS
from server.audit_site.words import LONGEST, kind_words, say

JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["metrics", "card", "grant", "terms", "parties", "name", "grantee"]), inner),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(sorted(KINDS)) | st.text(), JSON)
def test_no_body_breaks_the_line(kind, body):
    assert len(say(kind, body)) <= LONGEST


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_words(kind):
    assert kind_words(kind)


def test_what_a_grant_allows_is_told():
    terms = {"owner": "bank", "dataset": "credit", "grantee": {"name": "*"}, "purpose": "scoring"}
    assert say("grant", {"grant": {"terms": terms}}) == "bank/credit for anybody: scoring"
    assert say("round", {"round": 3, "metrics": {"loss": "0.5"}}) == "round 3: loss=0.5"
