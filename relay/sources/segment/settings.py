"""Settings of the source `segment`."""

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from relay.auth import Secrets

# As browsers write the header: in lower case, without a path.
_ORIGIN: Final = re.compile(r"https?://(?:[a-z\d_-]+(?:\.[a-z\d_-]+)*|\[[a-f\d:.]+\])(?::\d{1,5})?")


def _split_origins(value: object) -> object:
    if not isinstance(value, str):
        return value
    origins = [origin.strip().lower() for origin in value.split(",")]
    if not all(_ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError(
            "each should be like https://app.example.com, without a path; `*` is not allowed"
        )
    return origins


class SegmentSourceSettings(BaseModel):
    """Settings from the variables `RELAY_SEGMENT_…`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    write_key: Secrets = Field(
        default=(),
        description="Write key that Segment's libraries on servers give to relay, 16 characters or"
        " more, made up by you; several, separated by commas, while rotating.",
    )
    browser_write_key: Secrets = Field(
        default=(),
        description="Write key of analytics.js, which anybody can read: see"
        " `RELAY_SEGMENT_BROWSER_MAY`. 16 characters or more; several, separated by commas.",
    )
    browser_may: Annotated[Literal["write", "all"], BeforeValidator(str.lower)] = Field(
        default="write",
        description="What a call with a browser's write key may do: `write` about its own user, or"
        " `all`: also delete, alias, unsubscribe and resubscribe people, and write about others.",
    )
    origins: Annotated[tuple[str, ...], BeforeValidator(_split_origins)] = Field(
        default=(),
        description="Origins of the web pages that may call relay, like `https://app.example.com`;"
        " several, separated by commas. If unset, no browser may.",
    )
    shared_secret: Secrets = Field(
        default=(),
        description="Shared secret of Segment's Webhooks destination, 16 characters or more;"
        " several, separated by commas, while rotating. If unset, relay does not serve"
        " `/webhooks/segment`.",
    )

    @field_validator("browser_write_key")
    @classmethod
    def _not_the_servers(cls, value: Secrets, info: ValidationInfo) -> Secrets:
        if {*value} & {*info.data.get("write_key", ())}:
            raise ValueError(
                "a browser's key is public: it must differ from RELAY_SEGMENT_WRITE_KEY"
            )
        return value
