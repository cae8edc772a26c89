"""The requests of the OpenAI API that MedAlign's server takes, and its errors.

Fields that would change an answer and are not supported are refused, not ignored; others that
clients send for their own bookkeeping (`user`, `metadata`) are let through and left alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_TEXT = 1_000_000  # characters of one text; the body's size is bounded before


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=1_000_000)]


class Strict(BaseModel):
    # Strict types: "5" is no number, true is no integer.
    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "\n\n".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool = False


class JsonSchema(Strict):
    name: Annotated[str, Field(max_length=64)] = "answer"
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """`four_sections` is MedAlign's own: the teaching form, or a refusal, and nothing else."""

    type: Literal["text", "json_object", "json_schema", "four_sections"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def schema_given(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self


class Generation(Strict):
    """What both kinds of request may say."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Tokens | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def supported(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name in ("tools", "functions", "tool_choice", "logit_bias", "audio", "modalities"):
                if given.get(name) not in (None, [], {}, "none", ["text"]):
                    raise ValueError(f"{name} is not supported by this server")
        return given

    def sampling(self) -> dict[str, Any]:
        """What is handed on to the model as it is."""
        names = {"temperature", "top_p", "stop", "seed", "frequency_penalty", "presence_penalty"}
        return self.model_dump(include=names, exclude_none=True)


class ChatRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def one_limit(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        return self

    @property
    def in_sections(self) -> bool:
        """True if the answer is to be held to the four sections."""
        return self.response_format is not None and self.response_format.type == "four_sections"

    def conversation(self, system_prompt: str) -> list[dict[str, str]]:
        """The messages as the template wants them: one system text, then turns by turns.

        Neighbours of one role become one message, as mistral-common does it. `system_prompt`
        stands where the client sends none. ValueError unless a user speaks last.
        """
        system: list[str] = []
        turns: list[dict[str, str]] = []
        for message in self.messages:
            if message.role in ("system", "developer"):
                system.append(message.text)
            elif turns and turns[-1]["role"] == message.role:
                turns[-1]["content"] += "\n\n" + message.text
            else:
                turns.append({"role": message.role, "content": message.text})
        if not turns or turns[-1]["role"] != "user" or turns[0]["role"] != "user":
            raise ValueError("a conversation begins and ends with a message of the user")
        told = "\n\n".join(system) if system else system_prompt
        return [*([{"role": "system", "content": told}] if told else []), *turns]


class CompletionRequest(Generation):
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    suffix: Literal[""] | None = None

    @field_validator("prompt")
    @classmethod
    def not_empty(cls, prompt: Any) -> Any:
        if not (prompt if isinstance(prompt, str) else prompt[0]):
            raise ValueError("the prompt is empty")
        return prompt

    @property
    def text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class PredictRequest(Strict):
    """Vertex AI's envelope: chat requests or completions, answered in their order."""

    instances: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=16)]
    parameters: dict[str, Any] | None = None


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    error: ErrorBody


KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "invalid_request_error"}
KINDS |= {405: "invalid_request_error", 408: "timeout", 413: "invalid_request_error"}
KINDS |= {429: "rate_limit_error", 503: "server_unavailable", 504: "timeout"}


class ApiError(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = {"Retry-After": str(retry_after)} if retry_after else {}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }
