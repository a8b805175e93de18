"""Secrets at rest: any configured key decrypts, nothing else does, and no error shows a key."""

import base64

import pytest
from pydantic import SecretStr

from infra.crypto import Vault, new_key
from infra.settings import Settings
from schemas.errors import ConfigurationError, SecretUnreadable

KEY = "cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="


def test_what_is_encrypted_is_decrypted_and_never_twice_the_same() -> None:
    vault = Vault([new_key()])
    first, second = vault.encrypt(b"whsec_secret"), vault.encrypt(b"whsec_secret")
    assert first != second
    assert b"whsec_secret" not in first
    assert vault.decrypt(first) == vault.decrypt(second) == b"whsec_secret"


def test_a_new_first_key_encrypts_while_the_old_one_still_decrypts() -> None:
    old, new = new_key(), new_key()
    stored = Vault([old]).encrypt(b"secret")
    both = Vault([new, old])
    assert both.decrypt(stored) == b"secret"
    assert Vault([new]).decrypt(both.encrypt(b"later")) == b"later"


def test_what_another_key_encrypted_is_encrypted_anew_under_the_first() -> None:
    old, new = new_key(), new_key()
    stored = Vault([old]).encrypt(b"secret")
    both = Vault([new, old])
    assert not both.is_under_first_key(stored)
    anew = both.encrypt_anew(stored)
    assert both.is_under_first_key(anew)
    assert Vault([new]).decrypt(anew) == b"secret"
    with pytest.raises(SecretUnreadable) as caught:
        Vault([new]).encrypt_anew(stored)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("damage", [b"", b"no token", b"\x00\xff"])
def test_what_is_no_token_is_unreadable(damage: bytes) -> None:
    with pytest.raises(SecretUnreadable):
        Vault([KEY]).decrypt(damage)


def test_a_changed_byte_and_a_removed_key_are_unreadable_and_show_nothing() -> None:
    stored = Vault([KEY]).encrypt(b"plaintext")
    changed = stored[:30] + (b"A" if stored[30:31] != b"A" else b"B") + stored[31:]
    for vault, token in ((Vault([KEY]), changed), (Vault([new_key()]), stored)):
        with pytest.raises(SecretUnreadable) as caught:
            vault.decrypt(token)
        assert "HOOKHARE_ENCRYPTION_KEYS" in str(caught.value)
        assert KEY not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "wrong",
    [
        KEY[:-1],  # padding lost
        KEY + "=",
        KEY[:10] + "*" + KEY[10:],  # Fernet itself would drop the star and take it
        KEY.replace("_", "/"),  # the other base64 alphabet
        KEY[:-2] + "5=",  # the same 32 bytes written otherwise: bits left over
        base64.urlsafe_b64encode(b"k" * 16).decode(),
        base64.urlsafe_b64encode(b"k" * 33).decode(),
        "ключ",
        KEY + "\n",
    ],
)
def test_a_key_that_is_not_exactly_one_is_refused_by_position_and_never_shown(wrong: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Vault([KEY, wrong])
    message = str(caught.value)
    assert "HOOKHARE_ENCRYPTION_KEYS" in message
    assert "key 2 of 2" in message
    assert "hookhare keys new-encryption-key" in message
    assert wrong.strip() not in message
    assert KEY not in message


@pytest.mark.parametrize("setting", [None, SecretStr(""), SecretStr(" , ")])
def test_without_a_key_there_is_no_vault(setting: SecretStr | None) -> None:
    with pytest.raises(ConfigurationError, match="HOOKHARE_ENCRYPTION_KEYS: no key is set"):
        Vault.from_settings(Settings(encryption_keys=setting))


def test_settings_hold_several_keys_separated_by_commas() -> None:
    old = new_key()
    stored = Vault([old]).encrypt(b"secret")
    vault = Vault.from_settings(Settings(encryption_keys=SecretStr(f" {KEY} ,{old}\n")))
    assert vault.decrypt(stored) == b"secret"
    assert Vault([KEY]).decrypt(vault.encrypt(b"x")) == b"x"


def test_a_vault_shows_how_many_keys_it_has_and_none_of_them() -> None:
    assert repr(Vault([KEY, new_key()])) == "Vault(2 keys)"
