"""What counts as a failed answer in a benchmark."""

from bench.load import says_error


def test_an_error_event_inside_a_stream_is_an_error():
    assert says_error(b'data: {"choices": []}\n\ndata: {"error": {"message": "EngineCore died"}}\n\n')


def test_a_model_that_writes_the_word_error_has_not_failed():
    assert not says_error(
        b'data: {"choices":[{"index":0,"text":"error","finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
    )


def test_an_empty_stream_says_nothing():
    assert not says_error(b"")
