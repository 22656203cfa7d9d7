"""What a failure of the database means: one table, by SQLSTATE."""

from collections.abc import Mapping
from enum import Enum

import asyncpg


class Action(Enum):
    """What to do about a failed call."""

    OTHERWISE = "the server undid the call because of other sessions: a write is tried otherwise, a read is a 503"
    UNAVAILABLE = "the database cannot answer now, whatever the request: a 503"
    DEFECT = "the call itself is wrong: a 500, logged"


# By SQLSTATE, or by its class, the first two characters; a state that is missing is a defect.
ACTIONS: Mapping[str, Action] = {
    "08": Action.UNAVAILABLE,  # connection exception
    "0A000": Action.UNAVAILABLE,  # feature not supported: by Citus, which has distributed the tables since the start
    "23505": Action.OTHERWISE,  # unique violation: of a change's number, while a shard moves
    "23P01": Action.OTHERWISE,  # exclusion violation: a row committed after the statement's snapshot
    "25006": Action.UNAVAILABLE,  # read-only transaction: connected to a standby
    "28": Action.UNAVAILABLE,  # invalid authorization
    "3D000": Action.UNAVAILABLE,  # the database does not exist
    "40": Action.OTHERWISE,  # transaction rollback: a deadlock was broken
    "42501": Action.UNAVAILABLE,  # insufficient privilege: grants were taken back
    "42703": Action.UNAVAILABLE,  # undefined column, function, table: migrations were rolled back
    "42883": Action.UNAVAILABLE,
    "42P01": Action.UNAVAILABLE,
    "53": Action.UNAVAILABLE,  # insufficient resources: disk full, too many connections
    "55": Action.UNAVAILABLE,  # not in prerequisite state: the database accepts no connections
    "55P03": Action.OTHERWISE,  # lock not available within lock_timeout
    "57": Action.UNAVAILABLE,  # operator intervention: shutdown, statement timeout
    "58": Action.UNAVAILABLE,  # system error
}
# By their texts, what Citus reports as internal errors; the first that fits.
INTERNAL_ERRORS = {
    "duplicate key": "23505",
    "postmaster was shut down": "57P01",  # killed, and the session did not notice before it waited for another server
    "failure on connection": "08006",
}
# Failures without a SQLSTATE. OSError includes timeouts; asyncpg's DataError is an InterfaceError, too.
BROKEN = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
NO_ANSWER = "The database does not answer."
RESTART = "Citus has distributed the tables since the service started; restart it"
UNKNOWN_OUTCOME = f"{NO_ANSWER} A write may have happened; sending it again is safe."


def cause_of(error: BaseException) -> str:
    """For the log. The text of the error is left out, since it may quote what clients sent."""
    name = type(error).__name__
    return f"{name}: {RESTART}" if isinstance(error, asyncpg.FeatureNotSupportedError) else name


def action_for(error: BaseException) -> Action:
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or "08000"
        if state == "XX000":
            state = next((found for text, found in INTERNAL_ERRORS.items() if text in str(error)), state)
        return ACTIONS.get(state) or ACTIONS.get(state[:2], Action.DEFECT)
    return Action.DEFECT if isinstance(error, ValueError) else Action.UNAVAILABLE  # ValueError: a wrong argument
