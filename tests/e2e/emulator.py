"""The function under AWS's Runtime Interface Emulator, as `sam local` runs it, without a container."""

import json
import os
import shutil
import socket
import subprocess
import sysconfig
from http.client import HTTPConnection
from pathlib import Path

import census

EMULATOR = Path(sysconfig.get_path("purelib"), "samcli/local/rapid/aws-lambda-rie-x86_64")
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "eu-central-1",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


class InvocationFailed(Exception):
    """The function did not answer: it died, or its time was over."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Emulator:
    """One function. The emulator starts it at the first invocation, and again after it has died."""

    def __init__(self, binary: Path, folder: Path, environment: dict[str, str], timeout_seconds: int = 60):
        self.port = free_port()
        self.log = folder / "function.log"
        program = folder / "aws-lambda-rie"
        if not program.exists():
            shutil.copy(EMULATOR, program)
            program.chmod(0o755)
        timeout = {"AWS_LAMBDA_FUNCTION_TIMEOUT": str(timeout_seconds)}
        addresses = ["--runtime-interface-emulator-address", f"127.0.0.1:{self.port}"]
        addresses += ["--runtime-api-address", f"127.0.0.1:{free_port()}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [program, *addresses, binary],
                # Nothing of the machine's own, as on Lambda.
                env={"PATH": os.environ["PATH"]} | CREDENTIALS | timeout | environment,
                stdout=log,
                stderr=log,
            )
        census.until("the emulator listens", lambda: listens(self.port))

    def invoke(self, event: object, timeout: float = 300) -> dict:
        """Gives the function an event. What it answers comes back."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", "/2015-03-31/functions/function/invocations", json.dumps(event))
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        try:
            answer = json.loads(body)
        except ValueError:
            raise InvocationFailed(body) from None
        if response.status != 200 or "errorType" in answer:
            raise InvocationFailed(body)
        return answer

    @property
    def function(self) -> int:
        """The process id of the function."""
        (function,) = census.until("the function is there", lambda: census.children(self.process.pid))
        return function

    @property
    def press(self) -> int:
        """The process id of the function's press."""
        (press,) = census.until("the press is there", lambda: census.children(self.function))
        return press

    @property
    def runs(self) -> list[int]:
        """The process ids of the press's runs."""
        return census.children(self.press)

    def log_lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def end(self) -> None:
        """Ends the emulator as a container is ended, and expects that nothing of it is left."""
        if self.process.poll() is not None:
            return
        family = census.descendants(self.process.pid)
        self.process.terminate()
        self.process.wait(timeout=10)
        expect_gone(family)


def expect_gone(processes: list[int]) -> None:
    def are_gone() -> bool:
        return not any(census.is_alive(process) for process in processes)

    census.until(f"the processes {processes} are gone", are_gone)
