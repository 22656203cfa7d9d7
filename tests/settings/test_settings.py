"""Settings from the environment and `.env`."""

from pathlib import Path

import pytest

from service import ROOT
from service.problems import StartError
from service.settings import Settings, read_settings


def read(tmp_path: Path, environment: dict[str, str] | None = None, file: str = "") -> Settings:
    (tmp_path / ".env").write_text(file)
    return read_settings(environment or {}, tmp_path / ".env")


def test_missing_and_empty_settings_have_their_defaults(tmp_path: Path) -> None:
    assert read_settings({}, tmp_path / "missing") == Settings()
    assert read(tmp_path, {"PORT": "", "PATH": "/bin"}, "\n# only a comment\nHOST=\n") == Settings()


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    file = "PORT=4000\nexport HOST='0.0.0.0' # all\nDATABASE_URL=\"postgres://u:p$x@h/d\"\n"
    settings = read(tmp_path, {"PORT": " 5000 ", "LOG_LEVEL": "WARNING"}, file)
    assert settings == Settings(port=5000, host="0.0.0.0", log_level="warning", database_url="postgres://u:p$x@h/d")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "3000.5"),
        ("LOG_LEVEL", "loud"),
        ("DATABASE_URL", "mysql://secret@h/d"),
        ("DATABASE_URL", "postgres://u:secret@h"),
        ("DATABASE_URL", "postgres://u:secret%@h/d"),
        ("DATABASE_URL", "postgres://u:secret@h1:1,h2:0/d"),
        ("OWNER_DATABASE_URL", "mysql://secret@h/d"),
        ("READ_DATABASE_URL", "mysql://secret@h/d"),
        ("READ_DATABASE_URL", "postgres://u:secret@h1,h2/d"),  # without a DATABASE_URL
        ("READ_LAG_MS_MAX", "0"),
        ("AUTH_JWKS_URL", "issuer.example/secret"),
        ("AUTH_JWKS_URL", "file:///secret"),
        ("AUTH_JWKS_URL", "https:///secret"),
        ("AUTH_JWKS_URL", "https://[::1"),
        ("AUTH_JWKS_URL", "https://h:99999999/"),
        ("STATEMENT_MS_MAX", "3000000000"),
        ("BUFFER_BYTES_MAX", "0"),
        ("POOL_CONNECTIONS_MAX", "none"),
        ("SHUTDOWN_GRACE_MS", "1s"),
    ],
)
def test_malformed_setting_is_named_in_a_one_line_error(tmp_path: Path, name: str, value: str) -> None:
    for environment, file in (({name: value}, ""), ({}, f"{name}={value}")):
        with pytest.raises(StartError, match=f"^Setting {name} is wrong: .*\\.$") as caught:
            read(tmp_path, environment, file)
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("PORT=1\nPROT=3000\n", "line 2: PROT is not a setting"),
        ("port=3000", "line 1: port is not a setting"),
        ("\nPORT\n", "line 2: expected NAME=value"),
        ("PORT 3000", "line 1: expected NAME=value"),
        ("HOST='a", "line 1: expected NAME=value"),
    ],
)
def test_malformed_line_of_the_file_is_named(tmp_path: Path, file: str, message: str) -> None:
    with pytest.raises(StartError, match=message):
        read(tmp_path, file=file)


def test_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PORT=1\nN\xff=2\n")
    with pytest.raises(StartError, match=r"line 2: N.* is not a setting"):
        read_settings({}, tmp_path / ".env")


def test_settings_are_immutable() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgres://u:s3cret@h:1/d?sslmode=require", "postgres://u:***@h:1/d?sslmode=require"),
        ("postgres://u:s3:c@ret@h/d", "postgres://u:***@h/d"),
        ("postgres://h:1/d?password=x@s3cret", "postgres://h:1/d?password=***"),
        ("postgres://h/d?passwor%64=s3cret", "postgres://h/d?password=***"),
        ("postgres://h/d?user=u&password=s3cret&x=1", "postgres://h/d?user=u&password=***&x=1"),
        ("postgres://h/d?SSLPassword=s3cret&access_token=s3cret", "postgres://h/d?SSLPassword=***&access_token=***"),
        ("postgres://u@h/d", "postgres://u@h/d"),
        ("", ""),
    ],
)
def test_passwords_are_masked(url: str, masked: str) -> None:
    settings = Settings(database_url=url or "postgres://h/d", read_database_url=url)
    assert settings.masked()["read_database_url"] == masked
    assert Settings(database_url=url).masked()["database_url"] == masked


def test_env_example_lists_every_setting_with_its_default(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text()
    assert read(tmp_path, file=example) == Settings()
    shown = [line.lstrip("# ").partition("=")[0] for line in example.splitlines() if "=" in line]
    assert shown == [name.upper() for name in Settings.__struct_fields__]
