"""The list of settings, and the files that must agree with it."""

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from hookhare.settings_list import env_example, in_force, listed
from infra.settings import Settings

ROOT = Path(__file__).parents[3]
# Where things are inside of the containers is docker-compose.yml's own business.
FIXED_BY_COMPOSE = {
    "HOOKHARE_BROKER_URL",
    "HOOKHARE_DATABASE_URL",
    "HOOKHARE_ENCRYPTION_KEYS",
    "HOOKHARE_API_HOST",
    "HOOKHARE_API_PORT",
    "HOOKHARE_DISPATCHER_HOST",
    "HOOKHARE_DISPATCHER_PORT",
}


def variables() -> set[str]:
    return {setting.variable for _, setting in listed()}


def test_the_example_lists_every_setting_as_it_is() -> None:
    assert (ROOT / ".env.example").read_text() == env_example(), "run: .venv/bin/hookhare settings --env > .env.example"
    assert set(re.findall(r"^(?:# )?(HOOKHARE_[A-Z0-9_]+)=", env_example(), re.MULTILINE)) == variables()


def test_defaults_of_the_example_are_what_the_settings_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in re.findall(r"^# (HOOKHARE_[A-Z0-9_]+)=(.*)$", env_example(), re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert Settings() == Settings.model_construct(
        **{name: field.default for name, field in Settings.model_fields.items()}
    )


def test_compose_hands_every_setting_on() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    passed_on = set(re.findall(r"^ {4}(HOOKHARE_[A-Z0-9_]+):$", compose, re.MULTILINE))
    fixed = set(re.findall(r"^ {4}(HOOKHARE_[A-Z0-9_]+): \S", compose, re.MULTILINE))
    assert fixed == FIXED_BY_COMPOSE
    assert passed_on == variables() - FIXED_BY_COMPOSE - {"HOOKHARE_HOME"}


def test_every_setting_says_what_it_does() -> None:
    assert [setting.variable for _, setting in listed() if not setting.description] == []


def test_a_secret_is_never_shown() -> None:
    settings = Settings(database_url=SecretStr("postgresql://me:hunter2@db/x"))
    shown = [in_force(settings, name) for name, _ in listed()]
    assert "(set, not shown)" in shown
    assert not any("hunter2" in text for text in shown)
