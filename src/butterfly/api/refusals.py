"""Fields that would change the output and that are not honoured: refused by name, not ignored."""

from __future__ import annotations

from collections.abc import Mapping

from butterfly.api.problems import UnsupportedFieldError

# What each may be without asking for anything.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": (None,),
    "audio": (None,),
    "bad_words": (None, []),
    "chat_template": (None,),
    "documents": (None, []),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "prompt_embeds": (None,),
    "prompt_logprobs": (None,),
    "return_tokens_as_token_ids": (None, False),
    "suffix": (None, ""),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
    "web_search_options": (None,),
}

_INSTEAD = {
    "function_call": "use tool_choice",
    "functions": "use tools",
    "prompt_logprobs": "use echo with logprobs on /v1/completions",
}

# Fields of the other endpoint.
CHAT_NEUTRAL: dict[str, tuple[object, ...]] = {"echo": (None, False)}
COMPLETION_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "top_logprobs": (None, 0),
}


def refuse_unsupported(sent: Mapping[str, object], neutral: Mapping[str, tuple[object, ...]]) -> None:
    """Raises UnsupportedFieldError for the first field of `sent` that asks for what is not there.

    `neutral` is the endpoint's own table, on top of what neither endpoint supports.
    """
    for name, values in {**_NEUTRAL, **neutral}.items():
        if sent.get(name) not in values:
            advice = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise UnsupportedFieldError(f"{name} is not supported{advice}", name)
