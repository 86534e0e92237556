"""The local system's own rules: its port, its environment, one at a time on a folder."""

import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from deployments.embedded import EmbeddedPostgres
from deployments.leash import Leashed
from deployments.local import PROJECT_DIR, LocalSystem
from deployments.machine import HOST, SetupError, free_port, inherited_environment
from deployments.up import auth_string, environment_file, main, write_environment_file


def test_the_preferred_port_is_taken_when_it_is_free() -> None:
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    assert free_port(port) == port


def test_another_port_is_taken_when_the_preferred_one_is_in_use() -> None:
    with socket.create_server((HOST, 0)) as server:
        taken = server.getsockname()[1]
        assert free_port(taken) != taken


def test_a_sourced_environment_file_gives_the_settings_and_the_tools(tmp_path: Path) -> None:
    settings = {
        "STORE_DATABASE_URL": "postgresql+psycopg://postgres@/store?host=/tmp/a b",
        "STORE_HOME": "/srv/it's here",
    }
    path = tmp_path / "env"
    path.write_text(environment_file(settings))
    show = f"import os; print([os.environ[n] for n in {sorted(settings)!r}])"
    printed = subprocess.run(
        [
            "/bin/sh",
            "-c",
            f". {shlex.quote(str(path))} && command -v prefect && python -c {shlex.quote(show)}",
        ],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert printed == [
        str(Path(sys.executable).parent / "prefect"),
        repr([settings[name] for name in sorted(settings)]),
    ]


def test_the_environment_file_is_for_its_owner_alone_whoever_could_read_it_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "env"
    path.touch(mode=0o644)
    write_environment_file(path, {"PREFECT_API_AUTH_STRING": "shop:password"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "shop:password" in path.read_text()


def test_a_password_is_asked_for_only_if_there_is_one() -> None:
    assert auth_string({}) is auth_string({"PREFECT_SERVER_API_AUTH_STRING": ""}) is None
    given = auth_string({"PREFECT_SERVER_API_AUTH_STRING": "shop:with:colon"})
    assert given == "shop:with:colon"


@pytest.mark.parametrize("wrong", ["password", ":password", "shop:"])
def test_a_password_without_a_user_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", wrong)
    assert main(["--data", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_make_up_hands_the_password_over_by_the_environment_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PREFECT_SERVER_API_AUTH_STRING" "$@"\n')
    python.chmod(0o700)
    make = shutil.which("make")
    assert make is not None
    # As if everything were installed: only the recipe of `up` is of interest.
    quiet = ["--no-print-directory", "--assume-old=.venv/.installed"]
    command = [make, *quiet, "up", f"BIN={tmp_path}"]
    printed = subprocess.run(
        [*command, "AUTH=shop:password"],
        cwd=PROJECT_DIR,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.splitlines()[-1] == "shop:password -m deployments.up"


def test_another_prefects_settings_do_not_reach_the_systems_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", "a key of Prefect Cloud")
    monkeypatch.setenv("STORE_CURRENCY", "EUR")
    seen = inherited_environment()
    assert not [name for name in seen if name.startswith("PREFECT_")]
    assert seen["STORE_CURRENCY"] == "EUR"


def test_a_second_start_on_the_same_folder_is_refused_with_the_first_ones_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = (
        "import sys; from pathlib import Path; from deployments.machine import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(SetupError, match=f"process {process.pid}"):
            LocalSystem(tmp_path).start()
        assert main(["--data", str(tmp_path)]) == 1
        assert f"process {process.pid}" in capsys.readouterr().err
        process.stdin.close()


def test_asking_a_system_that_is_not_running_says_so(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not running"):
        _ = LocalSystem(tmp_path).api_url


def test_a_part_that_has_ended_by_itself_is_named_with_its_status_and_the_last_of_its_log(
    tmp_path: Path,
) -> None:
    system = LocalSystem(tmp_path)
    system.require_running()
    command = [sys.executable, "-c", "print('out of memory'); raise SystemExit(3)"]
    worker = Leashed(command, log=tmp_path / "worker.log", env=dict(os.environ))
    worker.wait(30)
    system.workers.append(worker)
    with pytest.raises(SetupError) as raised:
        system.require_running()
    worker.stop()
    said = str(raised.value)
    assert "worker has ended by itself, with status 3" in said
    assert "out of memory" in said
    assert str(tmp_path / "worker.log") in said


def test_a_data_folder_that_is_gone_is_named_and_nothing_of_it_called_safe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Ended:
        log = tmp_path / "postgres.log"

        def exit_status(self) -> int:
            return 1

    monkeypatch.setattr(EmbeddedPostgres, "process", Ended())
    with pytest.raises(SetupError) as raised:
        LocalSystem(tmp_path).require_running()
    said = str(raised.value)
    assert f"{tmp_path / 'postgres'} was moved away or deleted" in said
    assert "Nothing is lost" not in said


def test_up_ends_with_status_1_when_a_part_of_it_ends_and_takes_its_environment_file_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter([None, SetupError("The worker has ended by itself")])

    def look(_system: LocalSystem) -> None:
        if (error := next(looks)) is not None:
            assert (tmp_path / "env").exists()
            raise error

    class NoServer:
        def __enter__(self) -> "NoServer":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def is_paused(self, _: str) -> bool:
            return False

        def start_run(self, *_: object) -> None:
            pass

    monkeypatch.setattr(LocalSystem, "start", lambda _: None)
    monkeypatch.setattr(LocalSystem, "api", lambda _: NoServer())
    monkeypatch.setattr(LocalSystem, "settings", lambda _: {"STORE_HOME": "/srv"})
    monkeypatch.setattr(LocalSystem, "ui_url", "http://127.0.0.1:4200")
    monkeypatch.setattr(LocalSystem, "require_running", look)
    monkeypatch.setattr("deployments.up._LOOK_SECONDS", 0.0)
    assert main(["--data", str(tmp_path)]) == 1
    assert "The worker has ended by itself" in capsys.readouterr().err
    assert not (tmp_path / "env").exists()


def test_a_server_that_stops_answering_when_all_is_up_is_named_with_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LocalSystem, "start", lambda _: None)
    monkeypatch.setattr(LocalSystem, "settings", lambda _: {"STORE_HOME": "/srv"})
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        nobody = f"http://{HOST}:{probe.getsockname()[1]}"
    monkeypatch.setattr(LocalSystem, "ui_url", nobody)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert main(["--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "The Prefect server has stopped answering (ConnectError" in said
    assert str(tmp_path / "logs" / "server.log") in said
    assert not (tmp_path / "env").exists()


def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    assert main(["--data", str(tmp_path / "taken")]) == 1
    assert str(tmp_path / "taken") in capsys.readouterr().err


def test_a_start_that_fails_of_a_full_disk_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_system: LocalSystem) -> None:
        raise psycopg.errors.DiskFull("could not extend file")

    monkeypatch.setattr(LocalSystem, "_start_postgres", fail)
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=3_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    assert main(["--data", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "could not extend file" in said
    assert f"The disk of {tmp_path} is full (3 MB are free)." in said


def test_a_database_that_has_ended_is_named_and_not_what_it_led_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Ended:
        log = tmp_path / "postgres.log"

        def exit_status(self) -> int:
            return 1

        def log_tail(self) -> str:
            return "PANIC: no space"

    def fail(_system: LocalSystem) -> None:
        raise SetupError("The Prefect server ended at its start")

    monkeypatch.setattr(EmbeddedPostgres, "process", Ended())
    monkeypatch.setattr(LocalSystem, "_start_postgres", fail)
    with pytest.raises(SetupError, match=r"PostgreSQL has ended by itself .*\nPANIC"):
        LocalSystem(tmp_path).start()


def test_recovery_by_hand_without_a_running_system_says_what_is_missing(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    command = [make, "-f", str(PROJECT_DIR / "Makefile"), "--assume-old=.venv/.installed"]
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT_DIR / name, tmp_path)
    finished = subprocess.run(
        [*command, "recover"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.returncode != 0
    assert "make up" in finished.stdout


def test_nothing_that_the_makefile_starts_sends_usage_data() -> None:
    make = shutil.which("make")
    assert make is not None
    printed = subprocess.run(
        [make, "--no-print-directory", "-f", str(PROJECT_DIR / "Makefile"), "-f", "-", "shown"],
        input="shown: ; @env",
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert {"DO_NOT_TRACK=1", "PREFECT_SERVER_ANALYTICS_ENABLED=false"} <= set(printed)
