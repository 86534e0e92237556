"""The fork server and its client, with real processes and an engine of the tests' own."""

import array
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from fork_server import child, client, server, status
from tests.polling import wait_until

PROJECT = Path(__file__).parents[2]
CLIENT = PROJECT / "fork_server" / "client.py"
COLD = "This run starts cold, without the fork server: "


class Runs:
    """Starts runs as a worker does, and ends every process that is left."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.root.mkdir()
        shutil.copy(Path(__file__).with_name("job.py"), self.root / "job.py")
        self.write("VERSION = 1\n")
        self.sockets = folder / "sockets"
        self.mark = str(folder)
        self.started: list[subprocess.Popen[str]] = []

    def write(self, code: str) -> None:
        """Bring in a version of the module that the fork server imports."""
        (self.root / "lib.py").write_text(code)

    @property
    def command(self) -> list[str]:
        client = [sys.executable, "-I", "-S", str(CLIENT)]
        return [*client, str(self.sockets), str(self.root), "job", "lib"]

    def start(self, job: str, *worker: str, **environment: str) -> subprocess.Popen[str]:
        """Start a run, as a child of this process or of another worker's."""
        run = subprocess.Popen(
            [*worker, *self.command],
            env={**os.environ, "JOB": job, "RUNS": self.mark, **environment},
            cwd=self.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(run)
        return run

    def end(self, job: str, typed: str = "", **environment: str) -> tuple[int, str, str]:
        """Start a run; return its status and what it has printed, once it has ended."""
        run = self.start(job, **environment)
        out, err = run.communicate(typed, timeout=60)
        return run.returncode, out, err

    def report(self, **environment: str) -> dict[str, Any]:
        status, out, err = self.end("report", "typed\n", **environment)
        assert (status, err) == (0, "")
        reported: dict[str, Any] = json.loads(out)
        return reported

    def stay(
        self, *worker: str, **environment: str
    ) -> tuple[subprocess.Popen[str], psutil.Process, str]:
        """Start a run that stays; return its client, its own process and its version."""
        run = self.start("stay", *worker, **environment)
        assert run.stdout is not None
        pid, _, version = run.stdout.readline().split()
        return run, psutil.Process(int(pid)), version

    def servers(self) -> list[psutil.Process]:
        """The fork servers, without their children."""
        return [p for p in self._processes() if p.ppid() not in {q.pid for q in self._processes()}]

    def _processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RUNS") == self.mark and "server.py" in " ".join(
                    process.cmdline()
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        for run in self.started:
            run.kill()
            run.communicate()
        for process in self._processes():
            process.kill()


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path)
    yield runs
    runs.close()


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_run_has_what_its_client_has_and_nothing_of_the_server_but_code(runs: Runs) -> None:
    first = runs.report(GIVEN="first")
    second = runs.report(GIVEN="second")
    for reported, given in ((first, "first"), (second, "second")):
        assert reported["environment"] == {
            **os.environ,
            "JOB": "report",
            "RUNS": runs.mark,
            "GIVEN": given,
        }
        assert (reported["folder"], reported["typed"]) == (str(runs.root), "typed\n")
        assert (reported["threads"], reported["path"]) == (1, "")
        assert reported["argv"] == [str(runs.root / "job.py")]
        # The fourth is that of the folder which is listed.
        assert reported["files"] == ["0", "1", "2", "3"]
        assert reported["session"] == reported["pid"]
        assert (reported["name"], reported["version"]) == ("__main__", 1)
    assert first["random"] != second["random"]
    assert len(runs.servers()) == 1


@pytest.mark.parametrize(
    ("job", "status", "said"),
    [
        ("exit 0", 0, ""),
        ("exit 7", 7, ""),
        ("kill 9", -9, ""),
        ("kill 15", -15, ""),
        ("kill 11", -11, ""),
        ("raise wrong", 1, "ValueError: wrong\n"),
        ("exit words", 1, "words\n"),
    ],
)
def test_a_client_ends_as_its_run_ends(runs: Runs, job: str, status: int, said: str) -> None:
    ended, out, err = runs.end(job)
    assert (ended, out) == (status, "")
    assert err.endswith(said)
    assert COLD not in err


def test_a_run_ends_with_its_threads_and_what_it_does_at_its_exit(runs: Runs) -> None:
    assert runs.end("linger") == (0, "its thread\nat its exit\n", "")


def test_a_signal_to_the_client_is_one_to_its_run(runs: Runs) -> None:
    run, process, _ = runs.stay()
    run.terminate()
    out, _ = run.communicate(timeout=60)
    assert (run.returncode, out) == (3, "told to end\n")
    assert is_gone(process)


def kill_client(run: subprocess.Popen[str], _process: psutil.Process, _server: int) -> None:
    run.kill()


def kill_run(_run: subprocess.Popen[str], process: psutil.Process, _server: int) -> None:
    process.kill()


def kill_server(_run: subprocess.Popen[str], _process: psutil.Process, server_pid: int) -> None:
    os.kill(server_pid, signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_client, kill_run, kill_server])
def test_whichever_is_killed_nothing_of_the_run_is_left(
    runs: Runs, kill: Callable[[subprocess.Popen[str], psutil.Process, int], None]
) -> None:
    run, process, _ = runs.stay()
    (serving,) = runs.servers()
    kill(run, process, serving.pid)
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    wait_until(lambda: is_gone(process), "the end of the run's process")
    assert runs.report()["version"] == 1
    wait_until(lambda: len(runs.servers()) == 1, "one fork server")


def test_new_code_is_run_by_another_server_while_a_run_of_the_old_goes_on(runs: Runs) -> None:
    run, process, version = runs.stay()
    assert version == "1"
    runs.write("VERSION = 'second'\n")
    assert runs.report()["version"] == "second"
    assert not is_gone(process)
    assert len(runs.servers()) == 2
    run.terminate()
    assert run.wait(timeout=60) == 3


def test_other_settings_of_prefect_have_another_server(runs: Runs) -> None:
    runs.report(PREFECT_LOGGING_LEVEL="DEBUG")
    runs.report(PREFECT_LOGGING_LEVEL="INFO", PREFECT__FLOW_RUN_ID="1")
    runs.report(PREFECT_LOGGING_LEVEL="INFO", PREFECT__FLOW_RUN_ID="2")
    assert len(runs.servers()) == 2


def test_many_first_clients_start_one_server(runs: Runs) -> None:
    started = [runs.start("exit 5") for _ in range(6)]
    for run in started:
        run.communicate(timeout=60)
    assert [run.returncode for run in started] == [5] * 6
    assert len(runs.servers()) == 1


def test_a_socket_that_a_dead_server_left_is_no_hindrance(runs: Runs) -> None:
    runs.report()
    (serving,) = runs.servers()
    serving.kill()
    wait_until(lambda: not runs.servers(), "the end of the server")
    assert list(runs.sockets.glob("*.socket"))
    assert runs.report()["version"] == 1


def test_a_server_without_work_ends_and_takes_its_socket_with_it(runs: Runs) -> None:
    runs.report(FORK_SERVER_IDLE_SECONDS="1")
    wait_until(lambda: not runs.servers(), "the end of the server")
    assert not list(runs.sockets.glob("*.socket"))


def test_a_server_that_is_told_to_end_keeps_its_child_and_serves_no_other(runs: Runs) -> None:
    run, process, _ = runs.stay()
    (serving,) = runs.servers()
    serving.terminate()
    wait_until(lambda: not list(runs.sockets.glob("*.socket")), "the end of the socket")
    assert runs.report()["version"] == 1
    assert len(runs.servers()) == 2
    run.terminate()
    assert (run.wait(timeout=60), run.stdout and run.stdout.read()) == (3, "told to end\n")
    assert is_gone(process)
    wait_until(lambda: not serving.is_running(), "the end of the server without a child")


def test_each_worker_has_a_server_of_its_own_which_ends_with_it_and_keeps_its_run(
    runs: Runs,
) -> None:
    worker = (sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])")
    _, ours, _ = runs.stay()
    theirs_started, theirs, _ = runs.stay(*worker)
    own, other = psutil.Process(ours.ppid()), psutil.Process(theirs.ppid())
    assert own.pid != other.pid
    theirs_started.kill()
    theirs_started.wait()
    name = f"*-{theirs_started.pid}.socket"
    wait_until(lambda: not list(runs.sockets.glob(name)), "the end of the socket")
    assert not is_gone(theirs)
    theirs.kill()
    wait_until(lambda: not other.is_running(), "the end of the worker's server")
    assert not is_gone(ours)
    assert own.is_running()


def test_a_client_that_waits_no_longer_has_no_child(runs: Runs) -> None:
    runs.report()
    (serving,) = runs.servers()
    (name,) = runs.sockets.glob("*.socket")
    streams = array.array("i", [0, 1, 2]).tobytes()
    given = {"environment": {"JOB": "stay"}, "folder": str(runs.root), "umask": 0o22}
    connection = client._connect(str(name))
    assert connection is not None
    with connection:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
        connection.sendmsg([json.dumps(given).encode() + b"\n"], rights)
        assert connection.recv(64) == b"ready\n"
        assert serving.children() == []
    log = Path(f"{name}.log")
    wait_until(lambda: "waits no longer" in log.read_text(), "line of the server's log")
    assert serving.children() == []
    assert runs.report()["version"] == 1


def ends_cold_while_another_goes_on(runs: Runs, process: psutil.Process, *worker: str) -> str:
    """Start a second run; return why it has started cold."""
    second = runs.start("report", *worker)
    out, err = second.communicate("typed\n", timeout=60)
    assert (second.returncode, json.loads(out)["typed"]) == (0, "typed\n")
    assert err.startswith(COLD)
    assert not is_gone(process)
    assert process.ppid() in {serving.pid for serving in runs.servers()}
    return err


def test_where_a_fork_fails_its_run_starts_cold_and_the_others_go_on(runs: Runs) -> None:
    runs.write(
        "import os\nVERSION = 1\nfork = os.fork\n"
        "def fails():\n"
        "    if os.path.exists('full'):\n"
        "        raise BlockingIOError(11, 'no more processes')\n"
        "    return fork()\n"
        "os.fork = fails\n"
    )
    run, process, _ = runs.stay()
    (runs.root / "full").touch()
    assert "no more processes" in ends_cold_while_another_goes_on(runs, process)
    run.terminate()
    assert run.wait(timeout=60) == 3


def test_a_server_takes_no_more_children_than_it_has_files_for(runs: Runs) -> None:
    most = server.SPARE_FILES + 1
    code = (
        f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most})); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    limited = (sys.executable, "-c", code)
    run, process, _ = runs.stay(*limited)
    assert "has 1 children, its most" in ends_cold_while_another_goes_on(runs, process, *limited)
    run.terminate()
    assert run.wait(timeout=60) == 3


def test_a_run_is_killed_for_want_of_memory_before_its_server_is(runs: Runs) -> None:
    _, process, _ = runs.stay()
    score = {
        pid: int(Path(f"/proc/{pid}/oom_score_adj").read_text())
        for pid in (process.pid, process.ppid())
    }
    assert score[process.pid] == min(1000, score[process.ppid()] + child.FIRST_TO_BE_KILLED)


def of_this_process() -> status.Status:
    """Return the one fork server of these tests: a system may be up on this machine."""
    (found,) = [each for each in status.servers() if each.worker == os.getpid()]
    assert isinstance(found, status.Status)
    return found


def test_a_server_tells_how_it_is_without_forking(runs: Runs) -> None:
    _, process, _ = runs.stay()
    found = of_this_process()
    assert (found.pid, found.children, found.is_current) == (process.ppid(), 1, True)
    runs.write("VERSION = 'second'\n")
    found = of_this_process()
    assert (found.children, found.is_current) == (1, False)


def test_a_frozen_server_is_told_of_although_it_does_not_answer(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, process, _ = runs.stay()
    monkeypatch.setattr(status, "PATIENCE_SECONDS", 0.1)
    server = psutil.Process(process.ppid())
    server.suspend()
    try:
        assert status.Silent(server.pid, os.getpid()) in status.servers()
    finally:
        server.resume()


def test_on_a_full_disk_a_run_starts_cold(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    open_file = os.open

    def without_space(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_file(path, flags, *mode)

    def start_cold(engine: str, error: Exception) -> NoReturn:
        started.append((engine, str(error)))
        raise SystemExit(0)

    monkeypatch.setattr(os, "open", without_space)
    monkeypatch.setattr(client, "_start_cold", start_cold)
    with pytest.raises(SystemExit):
        client.main([str(runs.sockets), str(runs.root), "job", "lib"])
    assert started == [("job", "[Errno 28] No space left on device")]


def a_folder_of_a_variable_that_is_not_set(runs: Runs) -> Mapping[str, str]:
    runs.sockets = Path("$FORK_SERVER_NOT_SET/sockets")
    return {}


def a_folder_that_is_another_one_for_each_run(runs: Runs) -> Mapping[str, str]:
    runs.sockets = Path("sockets")
    return {}


def a_folder_that_others_may_enter(runs: Runs) -> Mapping[str, str]:
    runs.sockets.mkdir(mode=0o755)
    return {}


def a_file_in_place_of_the_folder(runs: Runs) -> Mapping[str, str]:
    runs.sockets.write_text("")
    return {}


def a_module_that_starts_a_thread(runs: Runs) -> Mapping[str, str]:
    runs.write(
        "import threading, time\nVERSION = 1\n"
        "if 'server.py' in open('/proc/self/cmdline').read():\n"
        "    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    return {}


def a_module_that_cannot_be_imported(runs: Runs) -> Mapping[str, str]:
    runs.write("VERSION = 1\nif 'server.py' in open('/proc/self/cmdline').read():\n    1 / 0\n")
    return {}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (a_folder_of_a_variable_that_is_not_set, "names an environment variable that is not set"),
        (a_folder_that_is_another_one_for_each_run, "sockets is no absolute path"),
        (a_folder_that_others_may_enter, "must be a folder of this user's with mode 700"),
        (a_file_in_place_of_the_folder, "File exists"),
        (a_module_that_starts_a_thread, "has 2 threads and forks no more"),
        (a_module_that_cannot_be_imported, "it ended at its start; see "),
    ],
)
def test_where_no_server_is_to_be_had_the_run_starts_cold_and_says_why(
    runs: Runs, make: Callable[[Runs], Mapping[str, str]], why: str
) -> None:
    environment = make(runs)
    status, out, err = runs.end("report", "typed\n", **environment)
    assert (status, json.loads(out)["typed"]) == (0, "typed\n")
    assert err.startswith(COLD)
    assert why in err


def test_another_users_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        server.require_same_user(ours)
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(PermissionError, match="may not ask user 12345 for a run"):
            server.require_same_user(ours)


def test_importing_the_flows_starts_no_thread_and_connects_to_nothing() -> None:
    from deployments.warm_start import FLOW_MODULES

    code = "\n".join(
        [
            "import os, sys",
            f"sys.path.insert(0, {str(PROJECT)!r})",
            "from fork_server.imports import import_all",
            f"import_all(['prefect.engine', *{FLOW_MODULES!r}])",
            "files = {os.path.realpath(f'/proc/self/fd/{fd}') for fd in range(3, 100)}",
            "print(len(os.listdir('/proc/self/task')), [f for f in files if 'socket:' in f])",
            # What a run meets first, and would build by itself.
            "from prefect.client.schemas.objects import FlowRun",
            "print(FlowRun.__pydantic_complete__)",
        ]
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == "1 []\nTrue\n"


READS_SETTINGS = """
from prefect.settings import get_current_settings

def __getattr__(name):
    if name == "VERSION":
        return get_current_settings().logging.level
    raise AttributeError(name)
"""


def test_a_run_has_the_settings_of_prefects_files_as_they_are_when_it_starts(runs: Runs) -> None:
    runs.write(READS_SETTINGS)
    home = {"PREFECT_HOME": str(runs.root / "home")}
    assert runs.report(**home)["version"] == "INFO"
    (runs.root / "prefect.toml").write_text('[logging]\nlevel = "DEBUG"\n')
    assert runs.report(**home)["version"] == "DEBUG"
    assert len(runs.servers()) == 1


def test_the_template_of_a_process_pool_is_prefects_own() -> None:
    from prefect.workers.process import ProcessWorker

    ours = json.loads((PROJECT / "deployments/pools/process.json").read_text())
    assert ours == ProcessWorker.get_default_base_job_template()


def test_a_server_that_ends_last_leaves_the_socket_of_its_successor(runs: Runs) -> None:
    run, _, _ = runs.stay()
    (first,) = runs.servers()
    first.terminate()
    runs.report()
    (second,) = [server for server in runs.servers() if server.pid != first.pid]
    run.terminate()
    run.wait(timeout=60)
    wait_until(lambda: is_gone(first), "the end of the first server")
    runs.report()
    assert [server.pid for server in runs.servers()] == [second.pid]


def test_a_server_leaves_the_socket_that_another_has_bound_at_its_place(runs: Runs) -> None:
    run, _, _ = runs.stay()
    (first,) = runs.servers()
    (path,) = runs.sockets.glob("*.socket")
    second = client._start_server(str(path), str(runs.root), ["job", "lib"])
    wait_until(lambda: "ready" in Path(f"{path}.log").read_text(), "the second server")
    run.terminate()
    run.wait(timeout=60)
    first.terminate()
    wait_until(lambda: is_gone(first), "the end of the first server")
    assert path.exists()
    os.kill(second, signal.SIGKILL)
    os.waitpid(second, 0)


@pytest.mark.parametrize("name", ["PREFECT_OF_OURS", "OF_OURS"])
def test_a_run_has_a_variable_that_is_no_utf_8(runs: Runs, name: str) -> None:
    value = os.fsdecode(b"caf\xe9")
    assert runs.report(**{name: value})["environment"][name] == value


def test_a_module_whose_name_is_no_utf_8_is_code_as_any_other(runs: Runs) -> None:
    (runs.root / os.fsdecode(b"caf\xe9.py")).write_text("")
    assert runs.report()["version"] == 1


def test_a_client_that_stops_within_its_request_leaves_no_stream_open() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    with ours, theirs:
        streams = array.array("i", [0, 1, write_end]).tobytes()
        theirs.sendmsg([b'{"half of it'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        os.close(write_end)
        ours.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.receive(ours)
        assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_a_client_hears_why_a_server_has_refused_that_has_closed_already() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours:
        theirs.sendall(b"no room\n")
        theirs.close()
        assert client._request(ours) == "no room"


def test_without_a_prefect_home_the_folder_is_in_prefects_own(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("HOME", str(runs.root))
    runs.sockets = Path("$PREFECT_HOME/fork-server")
    assert runs.report()["environment"].get("PREFECT_HOME") is None
    assert len(list((runs.root / ".prefect" / "fork-server").glob("*.socket"))) == 1


def test_a_process_that_a_run_spawns_imports_from_the_folder_of_the_run(
    runs: Runs, tmp_path: Path
) -> None:
    runs.report()
    own = tmp_path / "own"
    shutil.copytree(runs.root, own)
    (own / "of_the_run.py").write_text("def leave() -> None:\n    raise SystemExit(5)\n")
    code = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    run = runs.start("spawn of_the_run", sys.executable, "-c", code, str(own))
    assert (run.wait(timeout=60), len(runs.servers())) == (5, 1)
