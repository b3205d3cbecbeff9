"""Checkpoints on the Hugging Face hub, read by byte ranges: only what is asked for is downloaded, and once.

Invariants: a listing pins one commit, and every byte belongs to it. What was downloaded lies in the cache as parts
``<file>/<start>-<stop>``, each written whole or not at all, so an interrupted download goes on where it stopped.
Nothing is read past the range that was asked for, whatever the server sends. Addresses, tokens, proxies and offline
mode are ``huggingface_hub``'s own (``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``). One thread at a time.
"""

from __future__ import annotations

import bisect
import json
import logging
import re
import time
from dataclasses import dataclass

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]  # its __all__ is lazy

from p2pllm.errors import CheckpointError, StorageError
from p2pllm.model.source import Files, plain_name

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""Without a byte for so long, a request has failed."""
ATTEMPTS = 5
RETRY_WAIT_S = 0.5
"""Before the second attempt; doubled each time."""
PIECE_BYTES = 1 << 20

_TRANSPORT: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
"""What a request may raise; the HTTP library's own base class differs between versions of ``huggingface_hub``."""
_PART = re.compile(r"(\d{1,18})-(\d{1,18})")


class _Transient(Exception):
    """Worth another attempt."""


_RETRIED: tuple[type[Exception], ...] = (_Transient, *_TRANSPORT)


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files of one commit: name -> (size, SHA-256 where the hub knows it)."""

    commit: str
    files: dict[str, tuple[int, str | None]]

    def to_json(self) -> bytes:
        return json.dumps({"commit": self.commit, "files": self.files}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> _Listing:
        raw = json.loads(data)
        return cls(str(raw["commit"]), {str(n): (int(size), digest) for n, (size, digest) in raw["files"].items()})


class HubSource:
    """One commit of a model repository on the hub.

    Attributes:
        title: the hub id, with the revision where it is not ``main``.
        bytes_fetched: downloaded so far, without what the cache had.

    Raises:
        CheckpointError: there is no such repository or revision, or it needs a token with access.
        StorageError: the hub cannot be reached and the cache has no listing, or the disk failed.
    """

    def __init__(
        self, repo: str, files: Files, cache_dir: str, revision: str = "main", endpoint: str | None = None
    ) -> None:
        self.title = repo if revision == "main" else f"{repo}@{revision}"
        self.bytes_fetched = 0
        self._repo = repo
        self._files = files
        self._endpoint = endpoint
        self._folder = f"{cache_dir}/hub/{repo.replace('/', '--')}"
        self._listing = self._list(revision)
        self._parts: dict[str, list[tuple[int, int]]] = {}

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._listing.files))

    def size(self, name: str) -> int:
        return self._entry(name)[0]

    def read(self, name: str, start: int, stop: int) -> bytes:
        """See ``Source.read``: from the cache as far as it goes, the gaps from the hub."""
        size, _ = self._entry(name)
        if stop > size:
            raise CheckpointError(f"{self.title}: {name} has {size} bytes, {stop} were wanted")
        data, position = bytearray(), start
        while position < stop:
            known = self._known(name)
            at = bisect.bisect_right(known, (position, size)) - 1
            if at >= 0 and known[at][1] > position:
                begin, end = known[at]
                upto = min(end, stop)
                data += self._files.read(self._part(name, begin, end), position - begin, upto - begin)
            else:
                upto = min(known[at + 1][0], stop) if at + 1 < len(known) else stop
                fetched = self._fetch(name, position, upto)
                self._files.write(self._part(name, position, upto), fetched)
                bisect.insort(known, (position, upto))
                data += fetched
            position = upto
        return bytes(data)

    def digests(self) -> dict[str, str] | None:
        return {name: digest for name, (_, digest) in self._listing.files.items() if digest is not None}

    def stamp(self, name: str) -> str | None:
        return f"hub|{self._repo}|{self._listing.commit}|{name}"

    # ------------------------------------------------------------------------------------------ the cache

    def _entry(self, name: str) -> tuple[int, str | None]:
        if plain_name(name) not in self._listing.files:
            raise CheckpointError(f"{self.title}: {name} is missing")
        return self._listing.files[name]

    def _known(self, name: str) -> list[tuple[int, int]]:
        """The parts of a file that the cache has whole, by position."""
        if name not in self._parts:
            found = []
            for part in self._files.names(f"{self._folder}/{self._listing.commit}/{name}"):
                match = _PART.fullmatch(part)
                if match is not None:
                    start, stop = int(match[1]), int(match[2])
                    if start < stop and self._files.size(self._part(name, start, stop)) == stop - start:
                        found.append((start, stop))
            self._parts[name] = sorted(found)
        return self._parts[name]

    def _part(self, name: str, start: int, stop: int) -> str:
        return f"{self._folder}/{self._listing.commit}/{name}/{start}-{stop}"

    # ------------------------------------------------------------------------------------------ the hub

    def _list(self, revision: str) -> _Listing:
        """The files of ``revision``: as the hub says now, or as it said last when it cannot be reached."""
        remembered = f"{self._folder}/listings/{revision.replace('/', '--')}.json"
        try:
            listing = self._ask(revision)
        except StorageError as exc:
            try:
                listing = _Listing.from_json(self._files.read(remembered, 0, self._files.size(remembered)))
            except (StorageError, ValueError, KeyError, TypeError, AttributeError):
                raise exc from None
            log.warning("%s; using what the cache has of %s", exc, self.title)
            return listing
        self._files.write(remembered, listing.to_json())
        return listing

    def _ask(self, revision: str) -> _Listing:
        if constants.HF_HUB_OFFLINE:
            raise StorageError(f"offline (HF_HUB_OFFLINE is set), and {self.title} is not in the cache")
        api = HfApi(endpoint=self._endpoint)
        try:
            info = api.model_info(self._repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        except GatedRepoError as exc:
            raise CheckpointError(
                f"{self.title} is gated: accept its terms on the hub, then run hf auth login"
            ) from exc
        except RepositoryNotFoundError as exc:
            raise CheckpointError(
                f"there is no model {self.title} on the hub, or it is private (then run hf auth login)"
            ) from exc
        except RevisionNotFoundError as exc:
            raise CheckpointError(f"{self._repo} has no revision {revision} on the hub") from exc
        except HFValidationError as exc:
            raise CheckpointError(f"{self._repo!r} is not a hub id") from exc
        except _TRANSPORT as exc:
            raise StorageError(f"cannot reach the hub for {self.title}: {_one_line(exc)}") from exc
        files = {}
        for sibling in info.siblings or ():
            if sibling.size is not None and "/" not in sibling.rfilename:
                digest = sibling.lfs.sha256 if sibling.lfs is not None else None
                files[plain_name(sibling.rfilename)] = (sibling.size, digest)
        if not info.sha or not re.fullmatch(r"[0-9a-f]{6,64}", info.sha):
            raise StorageError(f"the hub did not say which commit of {self.title} it has")
        return _Listing(info.sha, files)

    def _fetch(self, name: str, start: int, stop: int) -> bytes:
        """Download a range, with some patience."""
        wait_s = RETRY_WAIT_S
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._request(name, start, stop)
            except _RETRIED as exc:
                if attempt == ATTEMPTS or constants.HF_HUB_OFFLINE:
                    raise StorageError(f"downloading {name} of {self.title} failed: {_one_line(exc)}") from exc
                log.info("download of %s, bytes %d to %d: %s; once more", name, start, stop, _one_line(exc))
            time.sleep(wait_s)
            wait_s *= 2
        raise AssertionError("the loop returns or raises")

    def _request(self, name: str, start: int, stop: int) -> bytes:
        size, _ = self._listing.files[name]
        url = hf_hub_url(self._repo, name, revision=self._listing.commit, endpoint=self._endpoint)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            status = response.status_code
            if status == 429 or status >= 500:
                raise _Transient(f"HTTP {status}")
            if status >= 400:
                raise StorageError(f"downloading {name} of {self.title} failed: HTTP {status}")
            told = response.headers.get("content-range", "")
            whole = status == 200 and (start, stop) == (0, size)
            if not whole and (status != 206 or told.replace(" ", "") != f"bytes{start}-{stop - 1}/{size}"):
                raise StorageError(
                    f"downloading {name} of {self.title} failed: bytes {start} to {stop} of {size} were asked for, "
                    f"the answer is HTTP {status} {told}"
                )
            data = bytearray()
            for piece in response.iter_raw(PIECE_BYTES):
                data += piece
                self.bytes_fetched += len(piece)
                if len(data) > stop - start:
                    break
        if len(data) != stop - start:
            raise _Transient(f"{len(data)} bytes came where {stop - start} were asked for")
        return bytes(data)


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300] or type(exc).__name__
