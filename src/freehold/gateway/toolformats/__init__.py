"""How model families write tool calls: what they are told, what they may write, and how it is read as it comes.

    marks.py       the family, chosen from the chat template, with the reason
    grammars.py    what the model may write, as a grammar for the engine
    source.py      text as it comes, read by generators
    parsers.py     calls out of that text, one short generator per family
    thinking.py    visible thinking, apart from the answer
    rendering.py   turns, tools and earlier calls as chat templates want them

Knows no engine, no HTTP and no dialect of a client; tokens only as the ids of marks.
"""

from freehold.gateway.toolformats.marks import Family, choose

__all__ = ["Family", "choose"]
