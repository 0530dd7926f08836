"""Body and answer of POST /v1/chat/completions."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from llm_inference.schemas.base import JsonObject, ParameterError, Strict, Text
from llm_inference.schemas.generation import GenerationParameters, Usage

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Strict):
    """A part of a message; text is the only kind a text model reads."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(min_length=1)]


class CalledFunction(Strict):
    """The function of an earlier call; `arguments` is a JSON object in a string."""

    name: FunctionName
    arguments: Text


class EarlierCall(Strict):
    """A call that the assistant has made."""

    id: Text
    type: Literal["function"]
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates take it: with its arguments as an object."""
        function = {"name": self.function.name, "arguments": _arguments(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


class Message(Strict):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Text | None = None
    tool_calls: Annotated[list[EarlierCall], Field(max_length=128)] | None = None
    tool_call_id: Text | None = None
    # What clients have of an answer and send back with it; it says nothing.
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    refusal: None = None

    @model_validator(mode="after")
    def _whole(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise ParameterError("messages", "Only the assistant's messages may have tool_calls.")
        if self.role == "tool" and self.tool_call_id is None:
            raise ParameterError("messages", "Messages of a tool need a tool_call_id.")
        if self.role != "tool" and self.tool_call_id is not None:
            raise ParameterError("messages", "Only messages of a tool may have a tool_call_id.")
        if self.content is None and not self.tool_calls:
            raise ParameterError("messages", f"The messages of the {self.role} need content.")
        return self

    @property
    def of_tools(self) -> bool:
        """Whether the message can only be told by a template that knows tools."""
        return self.role == "tool" or bool(self.tool_calls)

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates take it.

        Raises:
            ValueError: the arguments of a call are not a JSON object.
        """
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content or ())
        # OpenAI renamed system to developer; no open model's template knows the new name.
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, dict):
        return arguments
    raise ValueError("the arguments of a tool call are not a JSON object")


class FunctionDefinition(Strict):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(
        default=None, description="whether the arguments must keep to the schema"
    )


class Tool(Strict):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates take it."""
        function: dict[str, Any] = {"name": self.function.name}
        function["description"] = self.function.description or ""
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class NamedFunction(Strict):
    """The name of one function."""

    name: FunctionName


class NamedTool(Strict):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatCompletionRequest(GenerationParameters):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(
        default=None, description="false allows one call in an answer; true is the default"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "ChatCompletionRequest":
        bounds = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(bounds) > 1:
            raise ParameterError(
                "max_tokens", "max_tokens and max_completion_tokens differ; send one of them."
            )
        if self.top_logprobs and not self.logprobs:
            raise ParameterError("top_logprobs", "top_logprobs needs logprobs to be true.")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ParameterError("tools", "Two tools have the same name.")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ParameterError(
                "tool_choice", f"There is no tool {self.tool_choice.function.name} in tools."
            )
        if self.tool_choice == "required" and not names:
            raise ParameterError("tool_choice", "The tool_choice required needs tools.")
        return self

    @property
    def offers_tools(self) -> bool:
        """Whether the model may call a tool in its answer."""
        return bool(self.tools) and self.tool_choice != "none"


class FunctionCall(BaseModel):
    """A called function; `arguments` is JSON in a string."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(BaseModel):
    """The model's answer; no content if it only calls tools."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class TopLogprob(BaseModel):
    """A token that might have been chosen, and its log probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TopLogprob):
    """A token of the answer, its log probability, and the most likely ones of its step."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The tokens of an answer with their log probabilities."""

    content: list[TokenLogprobs]
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
