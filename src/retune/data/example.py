"""One record, independent of its published format."""

from __future__ import annotations

from typing import Any, NamedTuple

Turn = tuple[str, str]  # role (system, user, assistant or tool) and what it says


class Example(NamedTuple):
    """One instruction and its answer, a conversation, or a text.

    Attributes:
        instruction: the task; of a conversation the first question. Empty for a plain text.
        input: further context of the task, may be empty.
        output: the answer; of a conversation the first one; or the plain text.
        source: the name of its file, without folder.
        row: its position there, from 1: the line of a JSONL file, else the number in the list or table.
        system: the system prompt, may be empty.
        messages: the turns of a conversation, the last one the assistant's; empty for anything else.
        unlearned: indices in `messages` of the assistant's turns that the loss leaves out.
    """

    instruction: str
    input: str
    output: str
    source: str
    row: int
    system: str = ""
    messages: tuple[Turn, ...] = ()
    unlearned: tuple[int, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether this is a plain text, without a prompt."""
        return not self.messages and not self.instruction.strip()

    @property
    def turns(self) -> list[Turn]:
        """The record as a conversation."""
        if self.messages:
            return list(self.messages)
        asked = f"{self.instruction}\n\n{self.input}" if self.input.strip() else self.instruction
        system = [("system", self.system)] if self.system.strip() else []
        return [*system, ("user", asked), ("assistant", self.output)]

    def to_dict(self) -> dict[str, Any]:
        """Return the record for a line of JSONL, without empty optional fields."""
        fields: dict[str, Any] = self._asdict()
        for name in ("system", "messages", "unlearned"):
            if not fields[name]:
                del fields[name]
        return fields

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Example:
        """Return the record in a line of JSONL."""
        messages = tuple((role, text) for role, text in content.get("messages", ()))
        unlearned = tuple(content.get("unlearned", ()))
        return cls(**{**content, "messages": messages, "unlearned": unlearned})
