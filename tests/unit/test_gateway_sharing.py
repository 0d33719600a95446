"""The salt that keeps one key's KV blocks from another's."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runtime.contract import GatewayContract
from headrace_runtime.gateway.request import COMPLETIONS, parse, salted
from headrace_runtime.gateway.sharing import salt_of

words = st.text(st.characters(exclude_characters="@/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=128)
who = st.tuples(words, words, words, st.booleans(), st.none() | words)


def contract(namespace: str = "n", deployment: str = "d") -> GatewayContract:
    return GatewayContract(namespace=namespace, deployment=deployment, served_name="m")


def test_without_keys_and_salts_there_is_one_salt_for_all() -> None:
    assert salt_of(contract(), "", False, None) == salt_of(contract(), "", False, None)


def test_a_salt_outlives_the_process_and_stays_as_it_is() -> None:
    """Else blocks that lie on disk were of no use after an upgrade."""
    salt = salt_of(contract("prod", "chat"), "alice", False, None)
    assert salt == "540457af1fb700951b06b4d6b36e0f66f23068ea813460a7c185292bbce8345c"


@settings(deadline=None)
@given(who, who)
def test_two_askers_have_one_salt_only_if_they_are_one(first: Any, second: Any) -> None:
    def salt(one: Any) -> str:
        namespace, deployment, key, own, given_salt = one
        return salt_of(contract(namespace, deployment), key, own, given_salt)

    assert (salt(first) == salt(second)) == (first == second)


def test_a_body_without_a_salt_gains_one_and_keeps_every_other_byte() -> None:
    body = b'{ "model":"m" , "prompt": "x", "unknown_field": [1, 2.50] }'
    made = salted(parse(COMPLETIONS, body, "m"), "s")
    assert made.body == b'{"cache_salt":"s", "model":"m" , "prompt": "x", "unknown_field": [1, 2.50] }'
    assert made.document["cache_salt"] == "s"


def test_a_body_with_a_salt_has_the_other_in_its_place_however_it_was_written() -> None:
    for body in (b'{"model": "m", "cache_salt": "x"}', rb'{"model": "m", "cache\u005fsalt": "x"}'):
        made = salted(parse(COMPLETIONS, body, "m"), "s")
        assert made.body == b'{"model":"m","cache_salt":"s"}'
