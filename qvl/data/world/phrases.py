"""Every word the world can say, English and Chinese.

Knows: templates, places, colours, numbers.
Does not know: scenes; when a phrase is true (`questions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
"""Cells of a 3 x 3 grid, row by row."""
PLACES_ZH = ("左上", "上面", "右上", "左边", "中间", "右边", "左下", "下面", "右下")
_AT = ("at the", "at the", "at the", "on the", "in the", "on the", "at the", "at the", "at the")

NUMBERS_ZH = ("零", "一", "两", "三", "四", "五", "六")

EN: Mapping[str, str] = MappingProxyType(
    {
        "caption": "Generate the caption in English:",
        "caption_grounded": "Generate the caption in English with grounding:",
        "caption_detailed": "Describe the picture in detail in English:",
        "caption_chat": "What is in the picture?",
        "caption_grounded_chat": "Describe the picture with boxes.",
        "caption_detailed_chat": "Describe the picture in detail.",
        "at": "{thing} {place}",
        "left_of": "{a} to the left of {b}",
        "above_of": "{a} above {b}",
        "join": ", ",
        "detailed": "{things}, on a {colour} background",
        "photo": "{things}, on a photo",
        "grounding_chat": "Give the box of {the}.",
        "object": "the object {place}",
        "ref_left": "the object to the left of {the}",
        "ref_right": "the object to the right of {the}",
        "ref_above": "the object above {the}",
        "ref_below": "the object below {the}",
        "ref_biggest": "the biggest object",
        "ref_smallest": "the smallest object",
        "ref_leftmost": "the leftmost object",
        "ref_rightmost": "the rightmost object",
        "ref_topmost": "the topmost object",
        "ref_lowest": "the lowest object",
        "this": "This",
        "is": " is",
        "box_to_name_chat": "What is in {box}?",
        "what": "What is {place}?",
        "count": "How many objects are there?",
        "count_same": "How many times can you see {the}?",
        "exists": "Is there {a}?",
        "background": "What colour is the background?",
        "left_right": "Is {a} left or right of {b}?",
        "above_below": "Is {a} above or below {b}?",
        "where": "Where is {the}?",
        "bigger": "Which is bigger, {a} or {b}?",
        "there_is": "yes",
        "there_is_not": "no",
        "yes": "yes",
        "no": "no",
        "left": "left",
        "right": "right",
        "above": "above",
        "below": "below",
        "says_background": "it is {word}",
        "says_left_right": "to the {word}",
        "says_above_below": "it is {word}",
        "says_where": "it is {word}",
        "answer": "{question} Answer:",
        "text_scene": "A picture of {things}.",
        "text_background": " The background is {colour}.",
        "text_ask": "{preface} {question}",
        "ocr": "OCR with grounding:",
        "ocr_chat": "Read the text and say where it stands.",
        "ocr_plain": "What does the text say?",
        "compare_which": "Which picture shows {the}?",
        "compare_every": "Is {the} in every picture?",
        "compare_most": "Which picture has the most objects?",
        "picture_1": "the first",
        "picture_2": "the second",
        "picture_3": "the third",
        "find": "Find {the} in the picture.",
        "this_box": "What is this? {box}",
        "it_where": "Where is it?",
        "it_left_right": "Is it left or right of {b}?",
        "it_above_below": "Is it above or below {b}?",
        "it_bigger": "Is it bigger than {b}?",
        "it_left": "What is to the left of it?",
        "it_right": "What is to the right of it?",
        "it_above": "What is above it?",
        "it_below": "What is below it?",
        "moves_what": "What is moving?",
        "moves_where": "Which way does {the} move?",
        "moves_left": "left",
        "moves_right": "right",
        "moves_up": "up",
        "moves_down": "down",
        "first": "Which appears first, {a} or {b}?",
        "times": "How many times does {the} appear?",
    }
)

ZH: Mapping[str, str] = MappingProxyType(
    {
        "caption": "用中文描述图片：",
        "caption_grounded": "用中文描述图片并给出位置：",
        "caption_detailed": "用中文详细描述图片：",
        "caption_chat": "图片里有什么？",
        "caption_grounded_chat": "描述图片并给出方框。",
        "caption_detailed_chat": "详细描述图片。",
        "at": "{thing}在{place}",
        "left_of": "{a}在{b}的左边",
        "above_of": "{a}在{b}的上面",
        "join": "，",
        "detailed": "{things}，背景是{colour}",
        "photo": "{things}，背景是照片",
        "grounding_chat": "给出{the}的方框。",
        "object": "{place}的物体",
        "ref_left": "{the}左边的物体",
        "ref_right": "{the}右边的物体",
        "ref_above": "{the}上面的物体",
        "ref_below": "{the}下面的物体",
        "ref_biggest": "最大的物体",
        "ref_smallest": "最小的物体",
        "ref_leftmost": "最左边的物体",
        "ref_rightmost": "最右边的物体",
        "ref_topmost": "最上面的物体",
        "ref_lowest": "最下面的物体",
        "this": "这",
        "is": "是",
        "box_to_name_chat": "{box}里是什么？",
        "what": "{place}是什么？",
        "count": "有几个物体？",
        "count_same": "图片里有几个{the}？",
        "exists": "有{a}吗？",
        "background": "背景是什么颜色？",
        "left_right": "{a}在{b}的左边还是右边？",
        "above_below": "{a}在{b}的上面还是下面？",
        "where": "{the}在哪里？",
        "bigger": "{a}和{b}哪个更大？",
        "there_is": "有",
        "there_is_not": "没有",
        "yes": "是",
        "no": "不是",
        "left": "左边",
        "right": "右边",
        "above": "上面",
        "below": "下面",
        "says_background": "{word}",
        "says_left_right": "{word}",
        "says_above_below": "{word}",
        "says_where": "{word}",
        "answer": "{question}答案：",
        "text_scene": "一张图片：{things}。",
        "text_background": "背景是{colour}。",
        "text_ask": "{preface}{question}",
        "ocr": "文字识别并给出位置：",
        "ocr_chat": "读出文字并说明位置。",
        "ocr_plain": "图片上写着什么？",
        "compare_which": "哪张图片里有{the}？",
        "compare_every": "每张图片里都有{the}吗？",
        "compare_most": "哪张图片里的物体最多？",
        "picture_1": "第一张",
        "picture_2": "第二张",
        "picture_3": "第三张",
        "find": "请找到图片里的{the}。",
        "this_box": "这是什么？{box}",
        "it_where": "它在哪里？",
        "it_left_right": "它在{b}的左边还是右边？",
        "it_above_below": "它在{b}的上面还是下面？",
        "it_bigger": "它比{b}大吗？",
        "it_left": "它的左边是什么？",
        "it_right": "它的右边是什么？",
        "it_above": "它的上面是什么？",
        "it_below": "它的下面是什么？",
        "moves_what": "什么在移动？",
        "moves_where": "{the}往哪个方向移动？",
        "moves_left": "向左",
        "moves_right": "向右",
        "moves_up": "向上",
        "moves_down": "向下",
        "first": "{a}和{b}哪个先出现？",
        "times": "{the}出现了几次？",
    }
)


def say(language: str, key: str, **values: str) -> str:
    """The template `key` in the language, filled in."""
    return (ZH if language == "zh" else EN)[key].format(**values)


def place(language: str, cell: int) -> str:
    """Short name of a grid cell: "top left"."""
    return (PLACES_ZH if language == "zh" else PLACES)[cell]


def at_place(language: str, cell: int) -> str:
    """With its preposition: "at the top left"."""
    return PLACES_ZH[cell] if language == "zh" else f"{_AT[cell]} {PLACES[cell]}"
