"""`Endpoint` at a server that runs a tiny pipeline: images, what is recorded, and bad days."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline import AigiError
from pipeline.faults import MachineFault
from pipeline.images.endpoint import asking
from pipeline.images.endpoint.address import Stopped, Way, public_host
from pipeline.images.endpoint.endpoint import Endpoint, HttpSource, check_endpoint
from pipeline.images.endpoint.replies import Again, Reply, Unusable, fault, found_in
from pipeline.marks.dwt_dct import embed_dwt_dct
from pipeline.plan.specification import HttpSpec
from pipeline.tables import IMAGES, PLAN
from tests.endpoint import KEY, MODEL, Draw, Fault, Server, serving, tiny

VARIABLE = "TEST_ENDPOINT_KEY"


@pytest.fixture(scope="module")
def draw() -> Draw:
    return tiny()


@pytest.fixture
def server(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    with serving(draw) as server:
        yield server


def spec(**changes: Any) -> HttpSpec:
    data: dict[str, Any] = {
        "title": "t",
        "licence": "l",
        "kind": "http",
        "model": MODEL,
        "splits": {"train": {"count": 1, "width": 64, "height": 64}},
    }
    return HttpSpec.model_validate(data | changes)


def local(server: Server, **changes: Any) -> HttpSource:
    data: dict[str, Any] = {"kind": "http", "url": server.url, "key_env": VARIABLE, "retries": 2}
    return HttpSource.model_validate(data | {"timeout": 30} | changes)


def endpoint(server: Server, given: HttpSpec | None = None, **changes: Any) -> Endpoint:
    return Endpoint("api", given or spec(), local(server, **changes))


def plan_rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "image_id": f"id{i}",
            "text": f"a red boat number {i}",
            "source": "api",
            "width": 64,
            "height": 64,
            "watermark": "none",
            **changes,
        }
        for i in range(count)
    ]


def run(worker: Endpoint, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = pa.concat_tables(worker(pa.Table.from_pylist(rows, schema=PLAN)))
    assert table.schema == IMAGES
    found: list[dict[str, Any]] = table.to_pylist()
    assert [row["image_id"] for row in found] == [row["image_id"] for row in rows]
    return found


def pixels(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))


def test_a_row_has_the_image_and_what_was_asked_and_answered(server: Server, draw: Draw) -> None:
    given = spec(seeds=True, request={"quality": "high", "num_inference_steps": 3})
    rows = [{**row, "seed": 40 + i} for i, row in enumerate(plan_rows(5))]
    found = run(endpoint(server, given), rows)
    for row, made in zip(rows, found, strict=True):
        asked = {"model": MODEL, "n": 1, "size": "64x64", "seed": row["seed"], **given.request}
        expected = draw({**asked, "prompt": row["text"]})
        np.testing.assert_array_equal(pixels(made), np.asarray(expected))
        assert made["error"] is None and made["device"] == "endpoint"
        assert (made["width"], made["height"], made["batch_size"]) == (64, 64, None)
        facts = json.loads(made["versions"])["endpoint"]
        assert facts["request"] == asked and facts["host"] == "local" and facts["attempts"] == 1
        answer = facts["answer"]
        assert answer["created"] == 1_790_000_000 and answer["usage"] == {"output_tokens": 7}
        assert answer["revised_prompt"] == f"{row['text']}, in oil"
        assert answer["request_id"].startswith("req-")
        assert time.time() - 3600 < time.mktime(
            time.strptime(facts["asked"][:19], "%Y-%m-%dT%H:%M:%S")
        )
    assert sorted(server.prompts) == sorted(row["text"] for row in rows)
    assert {one.key for one in server.asked} == {KEY}


def test_without_seeds_none_is_sent_and_variants_share_one_request(server: Server) -> None:
    (row,) = plan_rows(1, pair_id="id0")
    both = [row, row | {"image_id": "twin", "watermark": "dwt-dct"}]
    plain, marked = run(endpoint(server), both)
    assert len(server.asked) == 1 and "seed" not in server.asked[0].fields
    np.testing.assert_array_equal(pixels(marked), embed_dwt_dct(pixels(plain)))
    assert plain["original_sha256"] == marked["original_sha256"]


@pytest.mark.parametrize("container", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("by_url", [False, True])
def test_images_come_in_any_container_inside_the_answer_or_beside_it(
    server: Server, container: str, by_url: bool
) -> None:
    server.container, server.by_url = container, by_url
    found = run(endpoint(server), plan_rows(2))
    assert [row["error"] for row in found] == [None, None]
    assert all(Image.open(io.BytesIO(row["image"]["bytes"])).format == "WEBP" for row in found)
    fetched = [one for one in server.asked if one.path.startswith("/files/")]
    assert len(fetched) == (2 if by_url else 0)
    assert not any(one.key for one in fetched), "the key is for the API alone"


def test_a_busy_endpoint_is_asked_again_when_it_wants_to_be(server: Server) -> None:
    server.faults.append(Fault(times=1, status=429, headers={"Retry-After": "1"}, body={}))
    found = run(endpoint(server, concurrency=1), plan_rows(2))
    assert [row["error"] for row in found] == [None, None]
    first, second = server.asked[0], server.asked[1]
    assert first.fields == second.fields and second.at - first.at >= 1
    assert json.loads(found[0]["versions"])["endpoint"]["attempts"] == 2


def test_an_endpoint_that_wants_an_hour_fails_the_shard_at_once(server: Server) -> None:
    server.faults.append(Fault(status=503, headers={"Retry-After": "3600"}, body={}))
    with pytest.raises(MachineFault, match=r"sources\.api: .*it asks to wait 3,600 s"):
        run(endpoint(server), plan_rows(1))
    assert len(server.asked) == 1


BURSTS = {
    "500": Fault(times=2, status=500, body={"error": {"message": "overheated"}}),
    "502": Fault(times=2, status=502, body=b"<html>bad gateway</html>"),
    "cut": Fault(times=2, cut=30),
    "HTML": Fault(times=2, body=b"<!doctype html><title>Log in</title>"),
    "no JSON": Fault(times=2, body=b'{"data": [{"b64_json": NaN}]}'),
    "silence": Fault(times=2, delay=1.5),
    "drip": Fault(times=2, drip=0.2),
}


@pytest.mark.parametrize("name", BURSTS)
def test_a_burst_of_faults_costs_no_image(server: Server, name: str) -> None:
    fault = BURSTS[name]
    server.faults.append(Fault(**vars(fault)))
    found = run(endpoint(server, timeout=1 if fault.delay or fault.drip else 30), plan_rows(3))
    assert [row["error"] for row in found] == [None] * 3
    assert len(server.asked) == 5


SAID = {
    "500": "HTTP 500: overheated",
    "502": "HTTP 502: an HTML page",
    "cut": "no image after 3 attempts: RemoteProtocolError",
    "HTML": r"the answer is an HTML page; is sources\.api\.url the base",
    "no JSON": "the answer is no JSON",
    "silence": "no whole answer within 0.5 s",
    "drip": "no whole answer within 0.5 s",
}


@pytest.mark.parametrize("name", BURSTS)
def test_an_endpoint_that_stays_broken_fails_the_shard_and_no_row(
    server: Server, name: str
) -> None:
    server.faults.append(Fault(**{**vars(BURSTS[name]), "times": 1 << 30}))
    slow = name in ("silence", "drip")
    with pytest.raises(MachineFault, match=SAID[name]):
        run(endpoint(server, timeout=0.5 if slow else 30), plan_rows(3))


def test_an_endpoint_that_is_not_there_fails_the_shard(server: Server) -> None:
    with serving(server.draw) as gone:
        pass
    with pytest.raises(MachineFault, match=r"sources\.api: http://127.*ConnectError"):
        run(endpoint(gone), plan_rows(3))
    with pytest.raises(MachineFault, match=r"no image after 3 attempts: ConnectError"):
        check_endpoint("api", spec(), local(gone))


def test_one_prompt_that_breaks_the_server_is_the_fault_of_its_row(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.5)
    server.faults.append(Fault(when="number 2", status=500, body={"detail": "too long"}))
    found = run(endpoint(server, concurrency=2), plan_rows(9))
    assert found[2]["error"] == "error of the endpoint: 3 times HTTP 500: too long"
    assert [row["error"] is None for row in found] == [number != 2 for number in range(9)]


REFUSALS: list[tuple[int, dict[str, Any]]] = [
    (400, {"error": {"code": "content_policy_violation", "message": "Your request was rejected"}}),
    (400, {"error": {"code": "moderation_blocked", "type": "image_generation_user_error"}}),
    (403, {"error": {"code": "content_filter", "message": "blocked"}}),
    (422, {"detail": "the prompt does not pass the safety system"}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
def test_refused_content_is_an_error_of_its_row(
    server: Server, status: int, body: dict[str, Any]
) -> None:
    server.faults.append(Fault(when="number 1", status=status, body=body))
    found = run(endpoint(server), plan_rows(3))
    assert [row["error"] is None for row in found] == [True, False, True]
    assert (
        found[1]["error"].startswith(f"refused: HTTP {status} ") or "HTTP 422:" in found[1]["error"]
    )
    assert found[1]["image"] is None and found[1]["device"] == "endpoint"
    assert json.loads(found[1]["versions"])["endpoint"]["request"]["size"] == "64x64"
    assert len(server.asked) == 3, "what is refused is not asked again"


def test_a_shard_of_refusals_is_kept(server: Server) -> None:
    server.faults.append(Fault(status=400, body=REFUSALS[0][1]))
    found = run(endpoint(server), plan_rows(10))
    assert all(row["error"].startswith("refused") for row in found)


WRONG = {
    "another size": (Fault(size=(96, 64)), r"wrong size: 96x64, 64x64 was asked for"),
    "not taken": (Fault(status=400, body={"error": {"message": "size?"}}), "taken: HTTP 400: size"),
    "no data": (Fault(body={"created": 1, "data": []}), "no image: the answer has no data"),
    "no image": (Fault(body={"data": [{"seed": 1}]}), "neither b64_json nor url"),
    "no base64": (Fault(body={"data": [{"b64_json": "%"}]}), "b64_json is no base64"),
    "no picture": (Fault(body={"data": [{"b64_json": "aGVsbG8="}]}), "not a picture"),
    "huge": (Fault(body=b" " * (31 << 20)), "the answer has more than 30,758,229 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_for_a_row_is_its_error(server: Server, name: str) -> None:
    fault, said = WRONG[name]
    server.faults.append(Fault(**{**vars(fault), "when": "number 1"}))
    found = run(endpoint(server), plan_rows(3))
    assert [row["error"] is None for row in found] == [True, False, True]
    assert said in found[1]["error"]


def test_an_endpoint_with_another_size_is_found_before_it_is_paid_for_everything(
    server: Server,
) -> None:
    server.faults.append(Fault(size=(96, 64)))
    with pytest.raises(AigiError, match="every image failed, the first with: wrong size: 96x64"):
        run(endpoint(server, concurrency=1), plan_rows(40))
    assert len(server.prompts) < 14


def test_a_refused_key_stops_the_source_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "sk-another-key-000011112222")
    worker = endpoint(server, concurrency=1)
    for _ in range(2):
        with pytest.raises(Stopped, match=rf"HTTP 401 .*environment variable {VARIABLE} to a key"):
            run(worker, plan_rows(9))
    assert len(server.asked) <= 3, "the second shard asked nothing"
    with pytest.raises(AigiError, match="HTTP 401 invalid_api_key: wrong key"):
        check_endpoint("api", spec(), local(server))
    with pytest.raises(AigiError, match=r"sources\.api\.key_env names the environment variable"):
        check_endpoint("api", spec(), local(server, key_env=None))
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(AigiError, match=rf"{VARIABLE} is not set"):
        check_endpoint("api", spec(), local(server, lists_models=False))
    monkeypatch.setenv(VARIABLE, "sk-with\na break")
    with pytest.raises(AigiError, match=r"has spaces or other characters"):
        check_endpoint("api", spec(), local(server))


@pytest.mark.parametrize(
    "body",
    [
        Fault(status=402, body={"detail": "no credit left"}),
        Fault(status=429, body={"error": {"code": "insufficient_quota"}}),
        Fault(status=400, body={"error": {"code": "billing_hard_limit_reached"}}),
    ],
    ids=lambda fault: str(fault.status),
)
def test_an_empty_account_stops_the_source(server: Server, body: Fault) -> None:
    server.faults.append(Fault(**vars(body)))
    with pytest.raises(Stopped, match="The account may make no more images"):
        run(endpoint(server, concurrency=1), plan_rows(9))
    assert len(server.asked) <= 3


def test_models_and_addresses_are_checked_before_any_work(server: Server) -> None:
    check_endpoint("api", spec(), local(server))
    check_endpoint("api", spec(), local(server, url=server.url + "/"))
    with pytest.raises(AigiError, match="it offers no model 'tiny-ds'; did you mean \"tiny-sd\""):
        check_endpoint("api", spec(model="tiny-ds"), local(server))
    with pytest.raises(AigiError, match=r"/v2/models: HTTP 404: .*Correct sources\.api\.url"):
        check_endpoint("api", spec(), local(server, url=server.url.replace("v1", "v2")))
    with pytest.raises(Stopped, match="HTTP 404 model_not_found: The model `tiny-ds` does not exi"):
        run(endpoint(server, spec(model="tiny-ds")), plan_rows(2))
    assert {one.path for one in server.asked} == {
        "/v1/models", "/v2/models", "/v1/images/generations",
    }  # fmt: skip


def test_a_redirect_is_not_followed(server: Server) -> None:
    with serving(server.draw) as other:
        there = {"Location": f"{other.url}/images/generations"}
        server.faults.append(Fault(status=307, headers=there))
        with pytest.raises(Stopped, match=r"HTTP 307.*it leads to http://127.*are not followed"):
            run(endpoint(server), plan_rows(1))
    assert not other.asked


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("file:///etc/passwd", "the image is at file://, allowed is http and https"),
        ("ftp://127.0.0.1/a.png", "the image is at ftp://"),
        ("data:image/png;base64,aGVsbG8=", "the image is at data://"),
        ("http://user:word@127.0.0.1/", "the image is at http://"),
        ("{other}/files/0", "a host of a private network"),
        ("http://[::ffff:127.0.0.1]:1/", "a host of a private network"),
        ("http://169.254.169.254/latest/meta-data", "a host of a private network"),
        ("http://[", "there is no such host"),
        ("/files/0", "the image is at ://"),
    ],
)
def test_the_address_of_an_image_leads_nowhere_else(
    server: Server, address: str, said: str
) -> None:
    with serving(server.draw) as other:
        other.files["/files/0"] = b"secret"
        place = address.format(other=other.url.removesuffix("/v1"))
        body = {"data": [{"url": place}]}
        server.faults.append(Fault(when="number 1", body=body))
        found = run(endpoint(server), plan_rows(3))
    assert not other.asked
    assert found[1]["error"].startswith("unfit address: ") and said in found[1]["error"]
    assert [row["error"] is None for row in found] == [True, False, True]


def test_a_host_of_the_internet_is_asked_by_the_address_that_was_looked_up(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from pipeline.images.endpoint.address import allowed

    looked: list[str] = []

    async def found(_: object, host: str, port: int, **__: object) -> list[Any]:
        looked.append(host)
        return [(2, 1, 6, "", ("93.184.215.14", port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", found)
    target = asyncio.run(allowed("https://images.example.org:8443/a.png?sig=1", "https://b.org/v1"))
    assert looked == ["images.example.org"]
    assert target.url == "https://93.184.215.14:8443/a.png?sig=1"
    assert target.headers == {"Host": "images.example.org:8443"}
    assert target.extensions == {"sni_hostname": "images.example.org"}


def test_an_answer_that_quotes_the_key_does_not_spread_it(server: Server) -> None:
    def quoting(answer: dict[str, Any]) -> dict[str, Any]:
        answer["data"][0] |= {"revised_prompt": f"for {KEY}", KEY: KEY}
        return answer | {"user": KEY}

    server.faults += [
        Fault(when="number 0", change=quoting, headers={"X-Request-Id": KEY}),
        Fault(when="number 1", status=400, body={"error": {"message": f"bad: {KEY}", "code": KEY}}),
        Fault(when="number 2", body={"data": [{"url": f"{KEY}://x"}]}),
        Fault(when="dead", status=401, body={"error": {"message": f"Incorrect key {KEY}"}}),
        Fault(when="ill", status=500, body={"error": {"message": f"trace {KEY}"}}),
    ]
    found = run(endpoint(server), plan_rows(4))
    assert KEY not in json.dumps([{**row, "image": None} for row in found])
    assert json.loads(found[0]["versions"])["endpoint"]["answer"]["revised_prompt"] == "for ***"
    for prompt in ("dead", "ill"):
        with pytest.raises(AigiError) as caught:
            run(endpoint(server), plan_rows(2, text=prompt))
        assert KEY not in str(caught.value) and "***" in str(caught.value)


def test_no_more_requests_at_once_than_asked_for_and_none_faster(server: Server) -> None:
    server.delay = 0.05
    run(endpoint(server, concurrency=3), plan_rows(9))
    assert server.most_at_once == 3
    with serving(lambda fields: Image.new("RGB", (64, 64), "teal")) as quick:
        run(endpoint(quick, concurrency=5, requests_per_minute=120), plan_rows(5))
    starts = sorted(one.at for one in quick.asked)
    assert starts[-1] - starts[0] >= 4 * 0.5 * 0.9
    two = Endpoint("api", spec(), local(server, requests_per_minute=600), workers=2)
    assert two.way.interval == pytest.approx(0.2), "each of two workers gets half"


def test_rows_are_given_as_they_come_so_that_they_can_be_kept(server: Server) -> None:
    """A killed run has at most those under way to pay for again."""
    worker = endpoint(server, concurrency=2)
    chunks: Any = worker(pa.Table.from_pylist(plan_rows(20), schema=PLAN))
    for number in range(1, 4):
        assert next(chunks).num_rows == 1
        assert len(server.asked) <= number + 2 * 2 + 1
    chunks.close()
    asked = len(server.asked)
    time.sleep(0.2)
    assert len(server.asked) == asked, "what is given up asks nothing"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("url", "https://user:sk-secret00@host/v1"),
        ("url", "https://host/v1?api_key=sk-secret00"),
        ("url", "file:///sk-secret00"),
        ("url", "https://host:99999/sk-secret00"),
        ("url", "https:// host/sk-secret00"),
        ("key_env", "sk-secret00"),
        ("key_env", "hf_secret00"),
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_shown(setting: str, value: str) -> None:
    from pipeline import complaints

    with pytest.raises(ValidationError) as caught:
        HttpSource.model_validate({"kind": "http", setting: value})
    (line,) = complaints.lines(HttpSource, caught.value)
    assert "secret00" not in line and line.startswith(f"{setting}: expected ")


def test_a_key_does_not_go_over_the_internet_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    with pytest.raises(Stopped, match="everybody on the way could read the key"):
        Way("sources.api", "http://api.example.org/v1", MODEL, VARIABLE).key()
    for url in ("http://10.0.0.7:8000/v1", "http://gpu-1:8000/v1", "https://api.example.org/v1"):
        assert Way("sources.api", url, MODEL, VARIABLE).key() == KEY
    assert public_host("https://api.example.org/v1") == "api.example.org"
    for url in ("http://gpu-1/v1", "http://a.internal/v1", "http://[::1]:1/v1", "http://127.0.0.1"):
        assert public_host(url) is None


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"size": "1x1"}, "request.size: other settings decide this field"),
        ({"prompt": "x"}, "request.prompt: other settings"),
        ({"api_key": "x"}, "request.api_key: keys are in no file"),
        ({"x": float("nan")}, "request: expected what JSON can contain"),
        ({"x": "y" * 3000}, "request: more than 2,000 characters"),
    ],
)
def test_a_specification_cannot_ask_for_what_is_set_elsewhere(
    request_: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(request=request_)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["data", "b64_json", "url", "usage", "error", "code", "message", "type"]
            )
            | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
bodies = st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode())
WAY = Way("sources.api", "http://127.0.0.1:1/v1", MODEL)


@given(body=bodies, status=st.integers(100, 599), wait=st.text(max_size=12))
def test_any_answer_is_an_image_or_the_fault_of_somebody(
    body: bytes, status: int, wait: str
) -> None:
    reply = Reply(status, {"retry-after": wait, "location": wait}, body)
    said = fault(reply, "images/generations", WAY, str)
    assert isinstance(said, Unusable | Stopped | Again) and "\n" not in str(said)
    try:
        found = found_in(reply, WAY, str)
    except (Unusable, Again):
        return
    assert (found.data is None) == bool(found.address)
    json.dumps(found.facts, allow_nan=False).encode("ascii")
