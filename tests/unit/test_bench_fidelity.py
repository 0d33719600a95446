"""The comparison of the simulator with engines: what is counted as an answer, as an error and as a load."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree

import pytest

from bench.arrivals import Answer, play
from bench.fidelity import CHAT, E2E, IN_COMMON, ITL, KIND, ONE, SPLIT, TTFT, Load, Ran, capacity, plot, simulated
from bench.scatter import scatter
from simulator.profile import BLOCK, Profile
from simulator.request import Request

PROFILE = Profile(
    overhead=0.03, pace=0.001, step=0.03, per_request=0.002, per_token=4e-6, kv_tokens=20_000, batch_tokens=2048
)


class Engine(BaseHTTPRequestHandler):
    """Streams as vLLM does, in pieces that are cut anywhere. An answer of 13 tokens fails half-way, inside of 200."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.prompts.append(asked["prompt"])  # type: ignore[attr-defined]
        last = asked["max_tokens"] - 1
        events = [f'data: {{"choices":[{{"text":"a","finish_reason":{reason}}}]}}' for reason in ["null"] * last]
        events.append('data: {"choices":[{"text":"a","finish_reason":"length"}]}')
        if last == 12:
            events = [*events[:5], 'data: {"error":{"message":"EngineCore died"}}']
        stream = "\n\n".join([*events, "data: [DONE]", ""]).encode()
        self.send_response(200)
        self.end_headers()
        for start in range(0, len(stream), 30):
            self.wfile.write(stream[start : start + 30])
            self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def engine() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    server.prompts = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_every_request_is_sent_at_its_moment_and_its_events_are_noted(engine: ThreadingHTTPServer) -> None:
    asked = [Request(0.0, 20, 6, ()), Request(0.2, 30, 1, ())]
    answers = play(f"http://127.0.0.1:{engine.server_port}", "tiny", asked, seed=1)
    assert [len(answer.events) for answer in answers] == [6, 1]
    assert [answer.error for answer in answers] == ["", ""]
    # A timer may go off a tick of the clock early.
    assert all(answer.sent >= answer.request.at - 0.001 for answer in answers)
    assert sorted(map(len, engine.prompts)) == [20, 30]  # type: ignore[attr-defined]


def test_an_answer_that_fails_half_way_is_an_error_and_so_is_an_engine_that_is_not_there(
    engine: ThreadingHTTPServer,
) -> None:
    (failed,) = play(f"http://127.0.0.1:{engine.server_port}", "tiny", [Request(0.0, 20, 13, ())], seed=1)
    assert "EngineCore died" in failed.error
    engine.shutdown()
    engine.server_close()
    (refused,) = play(f"http://127.0.0.1:{engine.server_port}", "tiny", [Request(0.0, 20, 6, ())], seed=1)
    assert refused.error


def test_no_requests_are_no_answers() -> None:
    assert play("http://127.0.0.1:1", "tiny", [], seed=1) == []


def test_blocks_of_one_id_are_the_same_tokens_and_nothing_else_is(engine: ThreadingHTTPServer) -> None:
    asked = [Request(0.0, BLOCK + 20, 2, (7,)), Request(0.0, BLOCK + 30, 2, (7,))]
    for seed in (1, 2):
        play(f"http://127.0.0.1:{engine.server_port}", "tiny", asked, seed)
    prompts = engine.prompts  # type: ignore[attr-defined]
    assert len({tuple(prompt[:BLOCK]) for prompt in prompts}) == 1
    assert len({tuple(prompt[BLOCK:]) for prompt in prompts}) == 4


def test_a_load_is_the_same_for_the_same_seed_and_fits_the_engines() -> None:
    one, again = (IN_COMMON.requests(PROFILE, False, 1, 60.0, 3) for _ in range(2))
    assert one == again
    assert {len(request.blocks) for request in one} == {1}
    longest = Load("longest", 1900, 900, 0.5, common=1).requests(PROFILE, False, 1, 600.0, 3)
    assert longest
    assert max(request.prompt + request.output for request in (*one, *longest)) <= KIND.max_model_len
    rate = CHAT.share * capacity(PROFILE, CHAT, split=False, engines=1)
    assert len(CHAT.requests(PROFILE, False, 1, 600.0, 3)) == pytest.approx(600 * rate, rel=0.2)


def _as_simulated(times: float) -> Ran:
    """Engines that take so many times as long for everything as is simulated."""
    requests = CHAT.requests(PROFILE, True, 2, 60.0, 3)
    journeys = simulated(PROFILE, SPLIT, requests)
    answers = []
    for journey in journeys:
        at = journey.request.at
        assert journey.first is not None
        assert journey.end is not None
        answers.append(
            Answer(journey.request, at, [at + times * (moment - at) for moment in (journey.first, journey.end)])
        )
    return Ran(SPLIT, CHAT, answers, journeys, journeys, 0.0)


@pytest.mark.parametrize("figure", [E2E, TTFT, ITL])
def test_an_error_is_how_far_the_simulated_mean_is_from_the_measured_one(figure: str) -> None:
    assert _as_simulated(1.0).error(figure) == pytest.approx(0.0)
    assert _as_simulated(1.25).error(figure) == pytest.approx(0.2)
    assert _as_simulated(1.25).error_at(figure, 0.95) == pytest.approx(0.2)


def test_a_request_without_an_answer_is_in_no_mean() -> None:
    ran = _as_simulated(1.0)
    ran.answers[0].error, ran.answers[0].events = "HTTP 500", []
    assert ran.error(E2E) == pytest.approx(0.0)
    assert ran.row()[1] == str(len(ran.answers))


def test_a_lone_engine_queues_more_than_requests_that_never_meet() -> None:
    requests = CHAT.requests(PROFILE, False, 1, 60.0, 3)
    waits = [(j.first or 0.0) - j.request.at for j in simulated(PROFILE, ONE, requests)]
    apart = [Request(600.0 * index, r.prompt, r.output, r.ids) for index, r in enumerate(requests)]
    alone = [(j.first or 0.0) - j.request.at for j in simulated(PROFILE, ONE, apart)]
    assert sum(waits) > sum(alone)


def test_the_picture_has_a_point_for_each_run() -> None:
    ran = [_as_simulated(1.0), _as_simulated(1.25)]
    picture = ElementTree.fromstring(plot(ran))
    points = picture.findall("{http://www.w3.org/2000/svg}circle")
    names = 3
    assert len(points) == 3 * len(ran) + names
    assert ElementTree.fromstring(scatter({"nothing": {}})) is not None
