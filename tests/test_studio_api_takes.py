"""The studio's HTTP API: the history, sounds and pictures of takes, votes and the export."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import pytest
import soundfile

pytest.importorskip("fastapi")
from helpers.fake_system import RATE
from helpers.studio import PLENTY, Server, error, serve

UNKNOWN = "0" * 16


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio that all tests of this file share."""
    with serve(tmp_path_factory.mktemp("studio") / "project", policy=PLENTY) as running:
        yield running


@pytest.fixture(scope="module")
def take(server: Server) -> str:
    return server.make_take("bossa nova", seed=3)


class TestTakes:
    def test_pages_hold_all_takes(self, server: Server):
        made = [server.make_take() for _ in range(3)]
        ids = []
        query = "?limit=2"
        while query:
            page = server.client.get(f"/api/takes{query}").json()
            ids += [entry["id"] for entry in page["takes"]]
            query = page["next"] and f"?limit=2&before={page['next']!r}"
        assert ids == [entry.id for entry in reversed(server.queue.project.takes())]
        assert set(made) <= set(ids)

    def test_a_full_page_may_be_the_last_one(self, server: Server, take: str):
        oldest = server.queue.project.takes()[0].id
        server.make_take()
        count = len(server.queue.project)
        assert server.client.get(f"/api/takes?limit={count}").json()["next"] is None
        page = server.client.get(f"/api/takes?limit={count - 1}").json()
        rest = server.client.get(f"/api/takes?limit=5&before={page['next']!r}").json()
        assert [entry["id"] for entry in rest["takes"]] == [oldest]

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=a", "before=a", "favourites=maybe"])
    def test_a_bad_page_is_422(self, server: Server, query: str):
        answer = server.client.get(f"/api/takes?{query}")
        assert answer.status_code == 422
        assert query.partition("=")[0] in error(answer)

    def test_a_favourite_with_a_title(self, server: Server):
        made = server.make_take()
        answer = server.client.patch(f"/api/takes/{made}", json={"favourite": True, "title": "mine\n<b>"})
        assert answer.json()["favourite"] is True
        assert answer.json()["title"] == "mine <b>"
        favourites = server.client.get("/api/takes?favourites=true").json()["takes"]
        assert [entry["id"] for entry in favourites] == [made]

    @pytest.mark.parametrize("body", [{}, {"favourite": 1}, {"title": None}, {"seed": 5}, []])
    def test_a_bad_change_is_422(self, server: Server, take: str, body: Any):
        answer = server.client.patch(f"/api/takes/{take}", json=body)
        assert answer.status_code == 422
        error(answer)

    def test_a_deleted_take_is_gone(self, server: Server):
        made = server.make_take()
        assert server.client.delete(f"/api/takes/{made}").status_code == 204
        for place in ("", "/sound.flac", "/sound.ogg", "/spectrogram.png"):
            assert server.client.get(f"/api/takes/{made}{place}").status_code == 404

    def test_the_stored_file_and_its_ranges(self, server: Server, take: str):
        stored = server.queue.project.path(take).read_bytes()
        url = f"/api/takes/{take}/sound.flac"
        answer = server.client.get(url)
        assert answer.content == stored
        assert answer.headers["content-type"] == "audio/flac"
        part = server.client.get(url, headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, stored[10:20])

    @pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3"])
    def test_other_formats_and_their_ranges(self, server: Server, take: str, suffix: str):
        url = f"/api/takes/{take}/sound.{suffix}"
        data = server.client.get(url).content
        samples, rate = soundfile.read(io.BytesIO(data))
        assert rate == RATE
        assert len(samples) >= 2 * RATE
        for header, expected in (
            ("bytes=0-9", data[:10]),
            ("bytes=-5", data[-5:]),
            (f"bytes={len(data) - 3}-", data[-3:]),
        ):
            part = server.client.get(url, headers={"range": header})
            assert (part.status_code, part.content) == (206, expected)
        outside = server.client.get(url, headers={"range": f"bytes={len(data)}-"})
        assert outside.status_code == 416
        assert outside.headers["content-range"] == f"bytes */{len(data)}"

    def test_a_download_has_a_safe_name_and_tags(self, server: Server):
        made = server.make_take(title='../../"Überfall"; rm -rf /')
        answer = server.client.get(f"/api/takes/{made}/sound.flac?download=true")
        assert answer.headers["content-disposition"] == f'attachment; filename="uberfall-rm-rf-{made}.flac"'
        with soundfile.SoundFile(io.BytesIO(answer.content)) as sound:
            assert sound.title == '../../"Überfall"; rm -rf /'
            assert "seed 1" in sound.comment

    def test_an_unknown_format_is_404(self, server: Server, take: str):
        answer = server.client.get(f"/api/takes/{take}/sound.exe")
        assert answer.status_code == 404
        assert ".flac" in error(answer)

    def test_a_spectrogram_is_a_picture_of_its_size(self, server: Server, take: str):
        answer = server.client.get(f"/api/takes/{take}/spectrogram.png?width=320&height=200")
        assert answer.content[:8] == b"\x89PNG\r\n\x1a\n"
        assert [int.from_bytes(answer.content[i : i + 4]) for i in (16, 20)] == [320, 200]
        assert server.client.get(f"/api/takes/{take}/spectrogram.png?width=9999").status_code == 422

    def test_a_vote(self, server: Server, take: str):
        other = server.make_take("drums")
        answer = server.client.post("/api/votes", json={"a": take, "b": other, "choice": "b"})
        assert answer.status_code == 201
        lines = server.queue.project.votes_path.read_text().splitlines()
        assert json.loads(lines[-1])["choice"] == "b"
        for body, status in (
            ({"a": take, "b": other, "choice": "c"}, 422),
            ({"a": take, "b": UNKNOWN, "choice": "a"}, 404),
            ({"a": take, "b": other}, 422),
        ):
            answer = server.client.post("/api/votes", json=body)
            assert answer.status_code == status
            error(answer)
        assert server.queue.project.votes_path.read_text().splitlines() == lines

    def test_the_export_has_the_clips(self, server: Server, take: str):
        answer = server.client.get(f"/api/export.zip?takes={take}")
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.read(f"clips/{take}.flac") == server.queue.project.path(take).read_bytes()
            assert json.loads(archive.read("manifest.jsonl"))["id"] == take
        assert server.client.get(f"/api/export.zip?takes={UNKNOWN}").status_code == 404
        whole = server.client.get("/api/export.zip").content
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            assert len(archive.namelist()) > len(server.queue.project)
