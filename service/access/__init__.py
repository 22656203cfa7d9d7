"""Access rights: from a bearer token to a grant, which says what the request may use.

    tokens ─ published_keys or the key of the settings ─ grant ─ handler: `grant.organisation(...)`

`keys` says which keys may have signed a token. `key_settings` checks at the start whether the settings of
authentication fit together. Without them there are no tokens, and every request has the grant EVERYTHING.
"""
