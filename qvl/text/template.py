"""The Jinja chat template written into saved folders, so that other programs render what `ChatML` renders.

Knows: the Qwen2-VL chat form as a template string.
Does not know: token ids. `ChatML` builds the same thing from typed parts; the tests hold the two together.
"""

from __future__ import annotations

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system turn both models were trained with whenever a conversation brings none of its own."""

CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) -%}
{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\\n"""
CHAT_TEMPLATE += DEFAULT_SYSTEM
CHAT_TEMPLATE += """<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] in ('image', 'image_url') -%}
                {%- set seen.images = seen.images + 1 -%}
                {%- if add_vision_id -%}{{- 'Picture ' ~ seen.images ~ ': ' -}}{%- endif -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part['type'] in ('video', 'video_url') -%}
                {%- set seen.videos = seen.videos + 1 -%}
                {%- if add_vision_id -%}{{- 'Video ' ~ seen.videos ~ ': ' -}}{%- endif -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- else -%}
                {{- part['text'] -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
