"""`qvl chat`: talk with a model in the terminal.

Knows: what is typed and what is shown. Does not know: how a reply is computed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from rich.console import Console

from qvl.cli.drawing import draw, drawn_png
from qvl.cli.terminal import Protocol, picture_escape
from qvl.runtime import console as notes_console
from qvl.runtime import terminal_pictures
from qvl.text.family import ANY_MARKUP, Kind, Mark

if TYPE_CHECKING:
    from qvl.engine.api import Box, Reply
    from qvl.engine.vlm import VLM

_HELP = """\
/image PATH   show a picture with the next question (again for more)
/video PATH   show a clip with the next question
/save FILE    write the conversation as JSON
/reset        forget the conversation
/help         this list
/quit         leave (so does Ctrl-D); Ctrl-C stops a reply"""
_STYLES: dict[Kind, str] = {"ref": "bold cyan", "box": "dim", "quad": "dim"}


def chat(
    question: str | None = None,
    *,
    model: str = "runs/demo/model",
    image: str | list[str] | None = None,
    video: str | list[str] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    quantize: Literal["int8", "int4"] | None = None,
    boxes_folder: str | None = None,
    inline: Literal["auto", "kitty", "iterm", "off"] = "auto",
) -> None:
    """Talk with a model about pictures and clips; with a question: one answer, then the end.

    Places that the model names are drawn over the picture: in a file whose name is printed, and in the terminal if it
    can show pictures.

    Args:
        question: ask this and leave (- reads it from standard input); without it a conversation begins
        model: model folder, or a hub id such as Qwen/Qwen2-VL-2B-Instruct
        image: picture for the first question (several: '[a.jpg, b.jpg]')
        video: clip for the first question (several: '[a.mp4, b.mp4]')
        max_new_tokens: longest reply, in tokens
        temperature: 0 = always the most likely token; higher = more varied
        top_p: sample only from the likeliest tokens that together reach this probability
        seed: of the sampling; without it every reply is another one
        device: cpu, cuda, cuda:1, ...
        dtype: number format of the weights (default: float32; with quantize, bfloat16)
        quantize: int8 or int4 = weights of the language model rounded to integers: less memory, faster, less exact
        boxes_folder: where drawn boxes go; by default a folder "chat" beside the model
        inline: how the terminal is sent pictures with boxes; auto = as it says of itself
    """
    if question == "-":
        question = sys.stdin.read()
    if question is not None and not question.strip():
        raise ValueError("the question is empty; leave it out to begin a conversation")
    from qvl.engine.vlm import load

    notes = notes_console()
    with notes.status(f"loading {model} ..."):
        vlm = load(model, device=device, dtype=dtype, quantize=quantize)
    beside = Path(model).resolve().parent if Path(model).is_dir() else Path.cwd()
    protocol = terminal_pictures() if inline == "auto" else None if inline == "off" else inline
    talk = Conversation(
        vlm,
        {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed},
        Path(boxes_folder) if boxes_folder else beside / "chat",
        Console(highlight=False),
        notes,
        protocol if notes.is_terminal or inline != "auto" else None,
    )
    for kind, paths in (("image", image), ("video", video)):
        for path in [paths] if isinstance(paths, str) else paths or ():
            talk.show(kind, path)
    if question is not None:
        talk.ask(question)
    else:
        talk.run(input)


@final
class Conversation:
    """What was said so far, and the pictures that go with the next question."""

    def __init__(
        self,
        vlm: VLM,
        sampling: dict[str, Any],
        boxes_folder: Path,
        out: Console,
        notes: Console,
        pictures: Protocol | None = None,
    ) -> None:
        """`out` gets the replies, `notes` everything else, so that replies can be piped; `pictures` is how `notes` can
        be sent pictures."""
        self._vlm = vlm
        self._sampling = sampling
        self._boxes_folder = boxes_folder
        self._out = out
        self._notes = notes
        self._pictures_as = pictures
        self._raw = vlm.processor.config.chat_format == "raw"
        self._messages: list[dict[str, Any]] = []
        self._pending: list[dict[str, Any]] = []

    def run(self, read: Callable[[str], str]) -> None:
        """Reads lines until the end; what goes wrong with one of them is said and does not end the conversation."""
        self._note("Ask something. /image PATH shows a picture, /help lists the rest.")
        if self._raw:
            self._note("This model was only pretrained: it goes on from your text, and each question stands alone.")
        while True:
            try:
                line = read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self._obey(line)
            except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
                self._note(f"error: {error}", style="red")

    def show(self, kind: Literal["image", "video"], path: str) -> None:
        """Puts a picture or clip to the next question.

        Raises:
            FileNotFoundError, ValueError: it cannot be opened.
            ImportError: a clip, and no PyAV to read it.
        """
        from qvl.media.clip import scan_clip
        from qvl.media.image import image_hw

        file = str(Path(path).expanduser())
        if "\\ " in file and not Path(file).exists():
            file = file.replace("\\ ", " ")  # as terminals write the name of a file that is dropped on them
        if kind == "image":
            height, width = image_hw(file)
            self._note(f"{file}: {width} x {height} pixels (width x height)")
        else:
            clip = scan_clip(file)
            height, width = clip.stored_hw
            self._note(f"{file}: {len(clip.pts)} frames, {clip.seconds[-1]:.1f} s, {width} x {height} pixels")
        self._pending.append({"type": kind, kind: file})

    def ask(self, question: str) -> Reply | None:
        """Asks and prints the reply. None if it was stopped with Ctrl-C: what was said until then stays.

        Raises:
            ValueError, OSError: it cannot be answered; the turn, with its pictures, is forgotten.
        """
        turn = {"role": "user", "content": [*self._pending, {"type": "text", "text": question}]}
        self._pending = []
        history = self._pictures() if self._raw else self._messages
        stream = self._vlm.stream([*history, turn], **self._sampling)
        said: list[str] = []
        printer = _Printer(self._out)
        try:
            for piece in stream:
                said.append(piece)
                printer.show(piece)
        except KeyboardInterrupt:
            self._note(" (stopped)")
        finally:
            if said:
                self._out.print()
        self._messages += [turn, {"role": "assistant", "content": "".join(said)}]
        if stream.reply is not None:
            self._tell(stream.reply)
        return stream.reply

    def _obey(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        rest = rest.strip().strip("'\"")
        if command in ("/image", "/video", "/save") and not rest:
            raise ValueError(f"{command} needs the name of a file")
        if command == "/image":
            self.show("image", rest)
        elif command == "/video":
            self.show("video", rest)
        elif command == "/save":
            self._save(Path(rest).expanduser())
        elif command == "/reset":
            self._messages, self._pending = [], []
            self._note("forgotten")
        elif command == "/help":
            self._note(_HELP)
        elif re.fullmatch(r"/[a-z]+", command):
            raise ValueError(f"there is no {command}; /help lists what there is")
        elif line:
            self.ask(line)

    def _save(self, file: Path) -> None:
        if file.exists() and file.suffix != ".json":
            raise ValueError(f"{file} exists already and is no .json file; choose another name")
        file.write_text(json.dumps(self._messages, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        self._note(f"{len(self._messages)} messages in {file}")

    def _media(self) -> list[dict[str, Any]]:
        """Pictures and clips of the whole conversation, in the order of `Box.image`."""
        parts = [part for m in self._messages if m["role"] == "user" for part in m["content"]]
        return [part for part in parts if part["type"] != "text"]

    def _pictures(self) -> list[dict[str, Any]]:
        media = self._media()
        return [{"role": "user", "content": media}] if media else []

    def _tell(self, reply: Reply) -> None:
        usage, ms = reply.usage, reply.usage.milliseconds
        sizes = "".join(f", picture seen at {width} x {height}" for height, width in usage.resized_to)
        ends = {
            "length": f"; cut off at max_new_tokens={self._sampling['max_new_tokens']}",
            "repetition": "; ended because it went round in circles",
        }
        cut = ends.get(reply.finish_reason, "")
        seconds = sum(ms.values()) / 1000
        self._note(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, {seconds:.1f} s{sizes}{cut}")
        media = self._media()
        for index in sorted({box.image for box in reply.boxes}):
            boxes = [box for box in reply.boxes if box.image == index]
            for box in boxes:
                self._note(f"  {_printable(box.label) or 'box'}: {box.xyxy} in picture {index + 1}")
            if media[index]["type"] == "image":
                self._note(f"  drawn: {draw(media[index]['image'], boxes, self._boxes_folder)}")
                self._show_inline(media[index]["image"], boxes)

    def _show_inline(self, picture: Any, boxes: list[Box]) -> None:
        if self._pictures_as is not None:
            self._notes.file.write(picture_escape(drawn_png(picture, boxes), self._pictures_as) + "\n")
            self._notes.file.flush()

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


@final
class _Printer:
    """Prints pieces of a reply: in a terminal names are coloured and their marks left out, elsewhere verbatim."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._style = ""

    def show(self, piece: str) -> None:
        if not self._out.is_terminal:  # rich would turn tabs into blanks
            self._out.file.write(_printable(piece))
            self._out.file.flush()
            return
        for part in ANY_MARKUP.split(piece):
            if isinstance(part, Mark):
                self._style = _STYLES[part.kind] if part.opens else ""
            else:
                words = _printable(part)
                self._out.print(words, style=self._style, end="", markup=False, emoji=False, soft_wrap=True)


def _printable(text: str) -> str:
    """Without control characters: a model's words must not steer the terminal."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
