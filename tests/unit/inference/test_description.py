"""The published description of the API, and requests made up from it: none may fail inside."""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from llm_inference.app import create_app
from llm_inference.engine.interface import FinishReason, TokenEvent
from llm_inference.health import Health, Phase
from llm_inference.serving import Serving
from llm_inference.settings import Settings
from tests.unit.inference.told_engine import CHATS, Engine


class Answering(Engine):
    """Ends each of the sequences that it is asked for with one word."""

    def submit(self, request):
        stream = super().submit(request)
        stream.events = [
            TokenEvent(index=index, text="word", tokens=1, finish_reason=FinishReason.STOP)
            for index in range(request.n)
        ]
        return stream


def application():
    engine = Answering(chat_template=CHATS + "{% if tools %}<tool_call></tool_call>{% endif %}")
    serving = Serving(Settings(served_name="m"), Health(), load=lambda _: engine)
    for phase in (Phase.LOADING, Phase.WARMING):
        serving.health.enter(phase)
    serving._serve(engine)
    return create_app(serving)


described = schemathesis.openapi.from_asgi("/openapi.json", application())
OPERATIONS = [found.ok() for found in described.get_all_operations()]


# Not its own parametrize: that gives all of them one name, of which pytest-xdist runs the first.
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.label)
@hypothesis.given(data=hypothesis.strategies.data())
@hypothesis.settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    derandomize=True,
    database=None,
)
def test_requests_made_from_the_description(operation, data):
    case = data.draw(operation.as_strategy())
    # Half of them as for the served model, or all would end with its name.
    if isinstance(case.body, dict) and len(str(case.body)) % 2:
        case.body["model"] = "m"
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ]
    )
