"""A run's files as training and evaluation leave them, made by hand, and a reader of pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>\u202e'


def metric(value, n=40):
    return {"value": value, "n": n, "ci_low": max(0.0, value - 0.1), "ci_high": min(1.0, value + 0.1)}


def evaluation(accuracy):
    def gains(low):
        return {"value": low + 0.1, "n": 40, "ci_low": low, "ci_high": low + 0.2}

    def floors(key, value):
        return {floor: {key: metric(value), f"{key}/lang=en": metric(value)} for floor in ("constant", "blind")}

    vqa = {"accuracy": metric(accuracy), "accuracy/lang=en": metric(accuracy), "accuracy/kind=count": metric(0.125)}
    return {
        "config": {
            "model": "runs/x",
            "decoding": "greedy",
            "tasks": {
                "vqa": {"samples": 40, "kinds": {"count": 40}, "max_new_tokens": 24, "first_prompt": f"How? {HOSTILE}"}
            },
        },
        "seconds": 3.5,
        "samples": 60,
        "tasks": {
            "vqa": {
                "title": "Visual questions",
                "headline": "accuracy",
                "metrics": vqa,
                "floors": floors("accuracy", 0.3),
                "gains": {"constant": gains(0.2), "blind": gains(0.3)},
                "constants": {"count/en": f"2{HOSTILE}"},
            },
            "caption": {
                "title": "Captions",
                "headline": "cider",
                "metrics": {
                    "cider": {"value": 4.5, "n": 20, "ci_low": 4.0, "ci_high": 5.0},
                    "f1": metric(0.8),
                },
                "floors": floors("cider", 0.4),
                "gains": {"constant": gains(0.2), "blind": gains(-0.1)},
                "constants": {},
            },
        },
    }


def row(i, kind="count", lang="en", prediction="2", right=1.0, **more):
    base = {
        "name": f"t/{i}",
        "task": "vqa",
        "kind": kind,
        "lang": lang,
        "question": "<image>How many?",
        "answer": "2",
        "prediction": prediction,
        "finish_reason": "stop",
        "values": {"accuracy": right},
        "hw": [40, 60],
        "boxes_px": [],
        "answer_boxes_px": [],
        "objects_px": [{"label": "dog", "xyxy": [0, 0, 9, 9]}],
        "picture": f"pictures/{i}.webp",
    }
    return {**base, **more}


class Page(HTMLParser):
    """Collects tags, addresses and text; checks that what is opened is closed."""

    VOID = frozenset(("meta", "path", "rect", "image", "circle", "link", "br", "img", "polygon"))

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words, self.open, self.handlers = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))
