"""Settings of the destination `vero`."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator

from relay.destinations import urls

_LowerCase = BeforeValidator(str.lower)


class VeroDestinationSettings(BaseModel):
    """Settings of the Vero project that relay sends to."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    auth_token: SecretStr | None = Field(
        default=None,
        alias="VERO_AUTH_TOKEN",
        description="Auth token of the Vero project that relay sends Segment's calls to. Required"
        " to receive any.",
    )
    host: str = Field(
        default="https://api.getvero.com",
        alias="VERO_HOST",
        json_schema_extra={"format": "uri"},
        description="Base URL of Vero's Track API, without `/api/v2`.",
    )
    unsubscribe: Annotated[Literal["exact", "segment"], _LowerCase] = Field(
        default="exact",
        alias="VERO_UNSUBSCRIBE",
        description="Which events unsubscribe a person: `exact`, those called Unsubscribe or"
        " Unsubscribed in any case, with or without blanks, `_` and `-`; or, as Segment's own Vero"
        " destination has it, `segment`: all that have “unsubscribe” or “Unsubscribe” anywhere in"
        " their names.",
    )
    anonymous: Annotated[Literal["ignore", "id"], _LowerCase] = Field(
        default="ignore",
        alias="VERO_ANONYMOUS",
        description="What becomes of calls about a visitor with neither a user id nor an address:"
        " `ignore` them, or send the anonymous `id` as user id. Vero then bills a profile for each"
        " visitor.",
    )
    screen: Annotated[Literal["ignore", "track"], _LowerCase] = Field(
        default="ignore",
        alias="VERO_SCREEN",
        description="What becomes of `screen` calls: `ignore` them, or `track` them as"
        " `viewed_screen`.",
    )
    delete: bool = Field(
        default=False,
        alias="VERO_DELETE",
        description="`1` deletes a person in Vero when Segment asks for that. With `0` the request"
        " becomes a dead letter, for an operator to decide.",
    )
    rate: int = Field(
        default=50,
        ge=1,
        le=1_000,
        alias="VERO_RATE",
        description="Most requests a second to Vero, which has a limit and does not publish it.",
    )
    connections: int = Field(
        default=8,
        ge=1,
        le=100,
        alias="VERO_CONNECTIONS",
        description="Most requests to Vero at the same time. What concerns one person is sent one"
        " after the other.",
    )

    @field_validator("host")
    @classmethod
    def _base_url(cls, value: str) -> str:
        return urls.base_url(value, example="https://api.getvero.com", added="/api/v2")
