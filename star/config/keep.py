"""Defines the section `keep`: how long `star clean` leaves what nothing needs any more."""

from pydantic import Field

from star.config.base import S3Url, Section


class Keep(Section):
    """What `star clean` leaves, and where it looks."""

    days: float = Field(
        30,
        ge=0,
        description="Days for which results, unfinished work, downloads and logs stay although nothing needs them; more than the longest "
        "run takes",
    )
    s3: tuple[S3Url, ...] = Field(
        (),
        description="Folders in S3 whose results (`--out s3://...`) may be removed too, such as s3://bucket/results",
    )
