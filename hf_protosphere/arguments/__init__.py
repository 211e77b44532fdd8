"""Arguments of every job: fields whose help is their documentation, checks, one parser.

Knows `errors` only; the groups of arguments live with what they are about. Start at `parsing.py`;
`help.py` makes the page of `--help`."""
