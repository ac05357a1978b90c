"""Who may use a teacher: bearer tokens, compared in constant time.

A token travels as the gRPC metadata `authorization: Bearer TOKEN` with every call. Several are
valid at once, so that robots can move to a new one before the old one goes. Only hashes of the
tokens stay in memory.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tiekd_ros.errors import InvalidSettingError

SHORTEST_TOKEN = 16
"""Characters that a token has at least."""

TOKENS_VARIABLE = "TIEKD_TEACHER_TOKENS"
AUTHORIZATION = "authorization"
_LOG = logging.getLogger(__name__)
_TELL_EVERY_S = 60.0
_SCHEME = "bearer "
REFUSAL = (
    "this teacher needs a token: send the metadata `authorization: Bearer TOKEN` with one that it "
    "knows"
)


class Tokens:
    """The tokens that a server takes; empty where it asks for none."""

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        """Take these tokens.

        Raises:
            InvalidSettingError: one is too short or has characters that no header carries.
        """
        self._digests = [_digest(_checked(token).encode()) for token in tokens]

    @classmethod
    def load(cls, file: str = "", variable: str = TOKENS_VARIABLE) -> Tokens:
        """Read tokens, one a line; empty lines and lines that begin with # do not count.

        Args:
            file: where they stand; nobody but its owner and group may have access to it.
            variable: the environment variable that is read where no file is given.

        Returns:
            The tokens; none where there is neither a file nor the variable.

        Raises:
            InvalidSettingError: the source is there and cannot be used; never shows a token.
        """
        return cls(read_tokens(file, variable))

    def accept(self, header: str) -> bool:
        """Say whether an `authorization` header carries one of the tokens.

        Takes the same time for every header of a length, whichever token it is or is not.
        """
        has_scheme = header[: len(_SCHEME)].lower() == _SCHEME
        offered = _digest(header[len(_SCHEME) :].strip().encode(errors="surrogatepass"))
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, offered)
        return found and has_scheme

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return len(self._digests)


def read_tokens(file: str, variable: str) -> list[str]:
    """Return the tokens of a file, or else of an environment variable, as `Tokens.load` does."""
    if file:
        text, source = _read_secret(Path(file)), f"the token file {file}"
    elif variable in os.environ:
        text, source = os.environ[variable], f"the environment variable {variable}"
    else:
        return []
    lines = [line.strip() for line in text.splitlines()]
    try:
        tokens = [_checked(line) for line in lines if line and not line.startswith("#")]
    except InvalidSettingError as error:
        raise InvalidSettingError(f"{source}: {error}") from error
    if not tokens:
        raise InvalidSettingError(
            f"{source} has no token; write one a line, at least {SHORTEST_TOKEN} characters, "
            "for example from `openssl rand -hex 32`"
        )
    return tokens


def authorization_of(metadata: Iterable[Any] | None) -> str:
    """Return a call's `authorization` header; empty where there is none, or more than one."""
    found = [value for key, value in metadata or () if key.lower() == AUTHORIZATION]
    return found[0] if len(found) == 1 and isinstance(found[0], str) else ""


class TokenInterceptor:
    """Answers calls without a good token with UNAUTHENTICATED, before it reads what they send.

    A `grpc.ServerInterceptor` in all but name: the robot's side imports this file without gRPC.
    """

    def __init__(self, tokens: Tokens) -> None:
        """Take calls that carry one of `tokens`; none where there are none."""
        import grpc

        self.refused = 0
        """Calls that were refused."""
        self._lock = threading.Lock()
        self._told_at = -_TELL_EVERY_S
        self._told = 0
        self._code = grpc.StatusCode.UNAUTHENTICATED
        self._tokens = tokens
        # A handler for a stream of requests begins before the first has come: a stranger's
        # megabytes are never read.
        self._refusing = grpc.stream_unary_rpc_method_handler(self._refuse)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Let the call through, or put the refusal in its place."""
        if self._tokens.accept(authorization_of(handler_call_details.invocation_metadata)):
            return continuation(handler_call_details)
        return self._refusing

    def _refuse(self, requests: Any, context: Any) -> None:
        self._count(context.peer())
        context.abort(self._code, REFUSAL)

    def _count(self, peer: str) -> None:
        # Seldom told: whoever guesses tokens, or forgot one, asks often.
        with self._lock:
            self.refused += 1
            if time.monotonic() - self._told_at < _TELL_EVERY_S:
                return
            new, self._told, self._told_at = (
                self.refused - self._told,
                self.refused,
                time.monotonic(),
            )
        _LOG.warning("%d call(s) without a valid token, the last from %s", new, peer)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _checked(token: str) -> str:
    if len(token) < SHORTEST_TOKEN:
        raise InvalidSettingError(
            f"a token has {len(token)} characters; use at least {SHORTEST_TOKEN}, for example "
            "from `openssl rand -hex 32`"
        )
    if not all("!" <= character <= "~" for character in token):
        raise InvalidSettingError(
            "a token has a space or a character outside ASCII, which a header does not carry; "
            "make one with `openssl rand -hex 32`"
        )
    return token


def _read_secret(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & stat.S_IRWXO:
                raise InvalidSettingError(
                    f"the token file {path} is open to everybody on this machine (mode "
                    f"{mode:03o}); close it: chmod 600 {path}"
                )
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettingError(f"cannot read the token file {path}: {error}") from error
