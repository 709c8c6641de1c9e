"""Forgetting lasts: a revoked card that the board still shows is not pinned again."""

from __future__ import annotations

from tests.server.cli.test_identity_keys import book


def test_after_forgetting_the_next_card_is_pinned_and_not_the_revoked_one_again(shell, deployment):
    _, enter = deployment
    bank, ann = enter("bank", "data-owner"), enter("ann", "model-owner")
    words = ("data", "publish", "credit.csv", "--name", "c", "--purpose", "x")
    shell(*words, home=bank)
    shell("data", "list", home=ann)
    shell("identity", "revoke", "bank", "--reason", "stolen", home=bank)
    shell("identity", "forget", "bank", home=ann)
    shell("data", "list", home=ann)
    enter("bank", "data-owner", home=bank)
    shell.json(*words, home=bank)
    new = shell.json("identity", "show", home=bank)["fingerprint"]
    told = shell.json("data", "list", home=ann)
    assert book(ann, "ann").get("bank").fingerprint == new, told
    (member,) = [m for m in shell.json("identity", "members", home=ann)["members"] if m["name"] == "bank"]
    assert (member["fingerprint"], member["roles"]) == (new, ["data-owner"])
    bob = enter("bob", "receiver")  # who has never met the revoked one
    assert [d["owner"] for d in shell.json("data", "list", home=bob)["datasets"]] == ["bank"]
    assert book(bob, "bob").get("bank").fingerprint == new
