"""Mixes several data sets into one: exact shares, splits disjoint by text, reproducible.

Rules, in this order:

1. A record with an empty instruction or output (white space counts as empty) is dropped.
2. Two records are duplicates if prompt and completion are equal after Unicode normalisation (NFC) and with each run
   of white space replaced by one space. The first is kept; among sources, the one whose file has the lowest SHA-256,
   so that their order in the study file does not matter.
3. A record whose prompt alone fills `max_length` tokens is dropped: nothing would be left to learn.
4. Each source has the same share of both splits, as exact counts by largest remainder; without shares, all
   its records are used. A separate validation file is used whole, and records with its prompts are removed from train.
5. Records are drawn without replacement, in the order of a hash of seed and prompt. Records with the same prompt
   are never in different splits, not even from different sources: an answer in train would give away the
   one in validation.

Which records of a source are drawn does not depend on the other sources, unless they share prompts. Rules 1 to 3 are in
`retune.data.filters`, 4 and 5 in `retune.data.amounts` and `retune.data.draw`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retune import models, store
from retune.data import filters, plain_tokenizer, sources, stored_tokens, truncation
from retune.data.amounts import draw_splits
from retune.data.encode import Encoder, resolve, tokenize_examples
from retune.data.example import Example
from retune.data.filters import Pool, Text
from retune.data.mix_record import MixRecord, SourceRecord, SplitRecord
from retune.data.prompts import Prompt
from retune.data.tokenizer_digest import chat_template_digest, tokenizer_digest
from retune.data.tokens import LossOn, Tokens, flat
from retune.errors import InputError, RetuneError
from retune.records import canonical, digest, unseal, versions
from retune.study import PROMPTS, Data, File, Model

__all__ = ["MixRecord", "load_split", "load_tokens", "mix", "read_mix", "read_mix_record", "recipe_digest"]

Split = Literal["train", "validation"]
# Version of the rules above; raise it when they change, since the same recipe then gives other data
RULES = 1
MARKER = "mix.json"
_SAMPLED = 200  # records whose tokens a preview counts


def recipe_digest(data: Data, seed: int, tokenizer: Any = None) -> str:
    """Return the digest of everything that determines the mixed data: settings, seed, tokenizer, content of the files.

    The location of the files is not part of it. Each file is read once; of a cached remote file only the ETag is requested.

    Args:
        data: the study's `data` section.
        seed: the study's seed.
        tokenizer: a transformers tokenizer, the folder it is loaded from, or None.

    Raises:
        InputError: if a file is missing.
    """
    return _recipe(data, seed, tokenizer, *_pools(data))


def source_digests(data: Data) -> dict[str, str]:
    """Return the SHA-256 of each source file of a study, by the file's name.

    Raises:
        InputError: if files are missing, with all of them.
    """
    pools, held_out = _pools(data)
    digests: dict[str, str] = {}
    for pool in [*pools, *([held_out] if held_out else [])]:
        name = sources.name(pool.source)
        digests[name if name not in digests else f"{name} ({len(digests) + 1})"] = pool.sha256
    return digests


def mix(
    data: Data, seed: int, tokenizer: Any, out_uri: str, progress: Callable[[str], None] | None = None
) -> MixRecord:
    """Mix the sources of a study into ``train.jsonl`` and ``validation.jsonl``; ``mix.json`` is written last.

    If the folder already has an undamaged result of the same recipe, only missing tokens are written.

    Args:
        data: the study's `data` section.
        seed: of the draw.
        tokenizer: a transformers tokenizer, or the folder of one, which is loaded only if needed; None
            skips rule 3 and the token statistics.
        out_uri: the folder to write to.
        progress: called with the name of each part of the work before it begins.

    Raises:
        InputError: if a file is missing, damaged or of another schema, or a source has too few records; with
            the problems of all sources. Nothing is written then.
    """
    progress = progress or (lambda part: None)
    progress("reading")
    pools, held_out = _pools(data)
    recipe = _recipe(data, seed, tokenizer, pools, held_out)
    tokenizer_id = tokenizer_digest(tokenizer)
    if existing := _existing(out_uri, recipe):
        if tokenizer is not None:
            progress("storing tokens")
            _store_tokens(data, tokenizer, out_uri, existing)
        return existing
    prompt, _, splits = _draw_splits(data, seed, tokenizer, pools, held_out, progress)
    progress("writing")
    files = {split: _jsonl([text for _, text in part]) for split, part in splits.items()}
    record = _record(
        data, seed, tokenizer_id, recipe, prompt, [*pools, *([held_out] if held_out else [])], splits, files
    )
    store.remove(store.join(out_uri, MARKER))  # while the files change, the folder must not look complete
    for split, content in files.items():
        store.write(store.join(out_uri, f"{split}.jsonl"), content)
    if tokenizer is not None:
        token_folder = stored_tokens.folder_uri(
            out_uri, record.digest, prompt, tokenizer, data.max_length, data.loss_on
        )
        encoded = {split: [text.encoded for _, text in part] for split, part in splits.items()}
        stored_tokens.save(
            token_folder,
            {split: flat(part, data.max_length, data.loss_on) for split, part in encoded.items()},
        )
    store.write(store.join(out_uri, MARKER), record.to_json())
    return record


@dataclass(frozen=True)
class Preview:
    """What `mix` would write.

    Attributes:
        lines: for people: each file with its detected format and what is dropped, the splits and the prompt, and what is cut.
        train, validation: numbers of records.
        tokens: the mean length of a record in tokens, truncated at `max_length`, from a sample; without a tokenizer
            estimated as a quarter of its characters.
    """

    lines: list[str]
    train: int
    validation: int
    tokens: float


def preview(data: Data, seed: int, tokenizer: Any, context: int | None = None) -> Preview:
    """Read, filter and draw as `mix` does, but write nothing.

    Args:
        data, seed, tokenizer: as of `mix`.
        context: the most tokens that the base reads, if known.

    Raises:
        InputError: as `mix`.
    """
    pools, held_out = _pools(data)
    all_pools = [*pools, *([held_out] if held_out else [])]
    prompt, encoder, splits = _draw_splits(
        data, seed, tokenizer, pools, held_out, lambda part: None, count=False
    )
    lines = [
        f"{sources.name(s.source)}: {s.read:,} records, read as {s.detected}{_dropped(s, data)}"
        for s in all_pools
    ]
    train, validation = splits["train"], splits["validation"]
    summary = _prompt_summary(prompt, [text for part in splits.values() for _, text in part])
    lines.append(f"{len(train):,} + {len(validation):,} records; prompt: {summary}")
    sample = [text for _, text in train[:_SAMPLED]]
    if encoder is None:
        lengths = [len(json.dumps(text.example.to_dict())) / 4 for text in sample]
    else:
        filters.count_tokens(sample, encoder)
        lengths = [text.prompt_tokens + text.completion_tokens for text in sample]
    mean = sum(min(length, data.max_length) for length in lengths) / len(lengths)
    if encoder is not None and (
        cut := truncation.describe(
            [text for _, text in train + validation], encoder, data.max_length, mean, context
        )
    ):
        lines.append(cut)
    return Preview(lines, len(train), len(validation), mean)


def _dropped(pool: Pool, data: Data) -> str:
    """Return how many records of a source the rules drop, by reason, as the end of its line."""
    reasons = {
        "empty": pool.empty,
        "duplicate": pool.duplicate,
        "in another source too": pool.shared,
        "with a prompt of the validation file": pool.held_out,
        f"too long (the prompt alone fills `max_length`, {data.max_length} tokens)": pool.too_long,
    }
    counts = [f"{number:,} {reason}" for reason, number in reasons.items() if number]
    return f"; dropped: {', '.join(counts)}" if counts else ""


def _prompt_summary(prompt: Prompt, texts: Sequence[Text]) -> str:
    """Return the prompt template of the records, for people; plain texts have none, whatever the prompt is."""
    templates = {
        "chat": "the base's chat template" if prompt.text is None else "the file's chat template",
        "fields": "the file",
        "alpaca": "Alpaca's template",
        "none": "none",
    }
    plain = sum(text.example.is_text for text in texts)
    if plain == len(texts):
        return "none, since plain text has none"
    return templates[prompt.kind] + (f"; none for {plain:,} plain texts" if plain else "")


def read_mix_record(uri: str) -> MixRecord:
    """Return the record of the mixed data in a folder.

    Raises:
        InputError: if there is no record, or it cannot be read.
    """
    try:
        return MixRecord.model_validate(unseal(json.loads(store.read(store.join(uri, MARKER)))))
    except FileNotFoundError as error:
        raise InputError(
            f"the folder holds no mixed data, since {MARKER} is missing; run `retune mix` first", uri
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{MARKER} cannot be read; run `retune mix` again ({error})", uri) from error


def _verified(uri: str, split: Split) -> tuple[MixRecord, Path]:
    """Return the record of mixed data and the path of a split, after comparing both with their checksums.

    Raises:
        InputError: if one of them is missing or was changed.
    """
    record = read_mix_record(uri)
    if record.digest != _digest(record.recipe, record.splits):
        raise InputError(
            f"its digest, {record.digest}, does not match its content; run `retune mix` again",
            store.join(uri, MARKER),
        )
    expected = record.splits[split].sha256
    file = store.join(uri, f"{split}.jsonl")
    try:
        path = store.download(file)
        with path.open("rb") as content:
            actual = hashlib.file_digest(content, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InputError("the file is missing; run `retune mix` again", file) from error
    if actual != expected:
        raise InputError(
            f"the file must have the SHA-256 {expected} of {MARKER}, but has {actual}; run `retune mix` again",
            file,
        )
    return record, path


def load_split(uri: str, split: Split) -> list[Example]:
    """Return the records of a split of mixed data, in the order of the draw.

    Raises:
        InputError: if there is none, or it is not what was mixed.
    """
    return _examples(_verified(uri, split)[1])


def _examples(path: Path) -> list[Example]:
    return [Example.from_dict(json.loads(line)) for line in path.read_text("utf-8").split("\n")[:-1]]


def load_tokens(
    uri: str, split: Split, tokenizer: Callable[[], Any], folder: Path, max_length: int, loss_on: LossOn
) -> Tokens:
    """Return the tokens of a split of mixed data: those that `mix` stored, else tokenised here.

    Args:
        uri: the folder of the data. split: which of the two.
        tokenizer: returns the transformers tokenizer of the base; called only if tokens are missing.
        folder: of that tokenizer.
        max_length, loss_on: see `retune.data.tokens.flat`.

    Raises:
        InputError: if there is no such data, or it is not what was mixed.
    """
    record, path = _verified(uri, split)
    token_folder = stored_tokens.folder_uri(uri, record.digest, record.prompt, folder, max_length, loss_on)
    stored = stored_tokens.load(token_folder, split)
    if stored is not None:
        return stored.tokens()
    return tokenize_examples(_examples(path), tokenizer(), record.prompt, max_length, loss_on)


def read_mix(uri: str) -> tuple[list[Example], list[Example], MixRecord]:
    """Return train, validation and record of the mixed data in a folder.

    Raises:
        InputError: if there is none, or it is not what was mixed.
    """
    return load_split(uri, "train"), load_split(uri, "validation"), read_mix_record(uri)


def _draw_splits(
    data: Data,
    seed: int,
    tokenizer: Any,
    pools: list[Pool],
    held_out: Pool | None,
    progress: Callable[[str], None],
    count: bool = True,
) -> tuple[Prompt, Encoder | None, dict[Split, list[tuple[Pool, Text]]]]:
    """Read, filter and draw; return the prompt, the encoder if there is a tokenizer, and the records of both splits."""
    all_pools = [*pools, held_out] if held_out else pools
    filters.parse(all_pools)
    conversations = any(text.example.messages for pool in all_pools for text in pool.texts)
    counting = _load_tokenizer(tokenizer)
    prompt = resolve(data.prompt, conversations, counting is None or bool(counting.chat_template))
    filters.drop_duplicates(pools)
    if held_out:
        filters.drop_duplicates([held_out])
        filters.drop_held_out(pools, held_out)
    encoder = None if tokenizer is None else _encoder(counting, prompt, tokenizer)
    if encoder is not None:
        filters.drop_too_long(all_pools, encoder, data.max_length)
    progress("drawing")
    drawn = draw_splits(data, seed, pools)
    splits: dict[Split, list[tuple[Pool, Text]]] = {
        "train": [(pools[source], pools[source].texts[index]) for source, index in drawn.train],
        "validation": [(pools[source], pools[source].texts[index]) for source, index in drawn.validation],
    }
    if held_out:
        splits["validation"] = [(held_out, text) for text in held_out.texts]
        if not held_out.texts:
            raise InputError(
                "the validation file must have a record, but none is left after empty, duplicate and too long ones are dropped",
                held_out.source.uri,
            )
    if encoder is not None and count:
        progress("counting tokens")
        filters.count_tokens([text for part in splits.values() for _, text in part], encoder)
    return prompt, encoder, splits


def _load_tokenizer(tokenizer: Any) -> Any:
    """Return the tokenizer given, or load it from a folder.

    The package tokenizers imports much faster than transformers; it is used where both are known to give the same tokens.
    """
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    return plain_tokenizer.load(Path(tokenizer)) or models.load_tokenizer(Model(base=str(tokenizer)))


def _encoder(loaded: Any, prompt: Prompt, tokenizer: Any) -> Encoder:
    """Return the encoder for a tokenizer as `_load_tokenizer` returned it; only transformers renders chat templates."""
    if prompt.kind == "chat" and isinstance(loaded, plain_tokenizer.PlainTokenizer):
        loaded = models.load_tokenizer(Model(base=str(tokenizer)))
    return Encoder(loaded, prompt)


def _store_tokens(data: Data, tokenizer: Any, uri: str, record: MixRecord) -> None:
    """Store the tokens of a finished mix, unless present: an older release stored none, another `loss_on` needs others."""
    token_folder = stored_tokens.folder_uri(
        uri, record.digest, record.prompt, tokenizer, data.max_length, data.loss_on
    )
    try:
        if all(stored_tokens.load(token_folder, split) for split in ("train", "validation")):
            return
    except RetuneError:
        pass  # damaged: store them again
    encoder = _encoder(_load_tokenizer(tokenizer), record.prompt, tokenizer)
    splits: tuple[Split, Split] = ("train", "validation")
    stored_tokens.save(
        token_folder,
        {
            split: flat(encoder.encode(load_split(uri, split)), data.max_length, data.loss_on)
            for split in splits
        },
    )


def _pools(data: Data) -> tuple[list[Pool], Pool | None]:
    """Return the sources, and the validation file if the study has one.

    Raises:
        InputError: if files are missing, with all of them.
    """
    held_out = [data.validation] if isinstance(data.validation, File) else []
    problems, read = [], []
    for files in (data.sources, held_out):
        try:
            read.append(filters.pools(files))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems, "data.sources")
    return read[0], read[1][0] if held_out else None


def _recipe(data: Data, seed: int, tokenizer: Any, pools: Sequence[Pool], held_out: Pool | None) -> str:
    """Return the digest of a recipe.

    A setting added in a later release is part of it only if the study uses it, so that older digests stay the same.
    """
    tokenizer_id = tokenizer_digest(tokenizer)
    asked: dict[str, Any] = {
        "train": data.train,
        "validation": _file(held_out) if held_out else data.validation,
        "sources": [_file(pool) for pool in pools],
    }
    if tokenizer_id is not None:
        asked |= {"tokenizer": tokenizer_id, "max_length": data.max_length}
    plain = {"alpaca", "dolly", "jsonl"}
    if data.prompt != "auto" or not {s.source.format for s in pools} <= plain or held_out:
        asked["prompt"] = data.prompt if data.prompt in PROMPTS else resolve(data.prompt).text
        if tokenizer_id is not None:
            asked["chat_template"] = chat_template_digest(tokenizer)
    return digest({"rules": RULES, "seed": seed, **asked})


def _file(pool: Pool) -> list[Any]:
    source = pool.source
    more = {"columns": source.columns, "split": source.split} if source.columns or source.split else None
    return [pool.sha256, source.format, pool.share, sources.name(source), *([more] if more else [])]


def _existing(uri: str, recipe: str) -> MixRecord | None:
    """Return the record of the folder's data, if they are of this recipe and undamaged."""
    try:
        record = read_mix_record(uri)
        if record.recipe != recipe:
            return None
        load_split(uri, "train")
        load_split(uri, "validation")
    except InputError:
        return None
    return record


def _digest(recipe: str, splits: Mapping[str, SplitRecord]) -> str:
    """Return the digest of mixed data: of the recipe and of both files."""
    return digest({"recipe": recipe, "files": {split: record.sha256 for split, record in splits.items()}})


def _jsonl(texts: Sequence[Text]) -> bytes:
    return "".join(canonical(text.example.to_dict()) + "\n" for text in texts).encode()


def _record(
    data: Data,
    seed: int,
    tokenizer: str | None,
    recipe: str,
    prompt: Prompt,
    pools: Sequence[Pool],
    splits: dict[Split, list[tuple[Pool, Text]]],
    files: dict[Split, bytes],
) -> MixRecord:
    def part(split: Split, pool: Pool | None = None) -> SplitRecord:
        texts = [text for owner, text in splits[split] if pool is None or owner is pool]
        lengths = [(text.prompt_tokens, text.completion_tokens) for text in texts]
        return SplitRecord.of(lengths if tokenizer else None, len(texts), data.max_length)

    whole: dict[str, SplitRecord] = {split: part(split) for split in splits}
    for split, content in files.items():
        whole[split].sha256 = hashlib.sha256(content).hexdigest()
    parts = [
        SourceRecord(
            format=pool.source.format,
            taken=pool.detected,
            share=_share(pool, pools, data),
            name=sources.name(pool.source),
            sha256=pool.sha256,
            read=pool.read,
            empty=pool.empty,
            duplicate=pool.duplicate,
            shared=pool.shared,
            too_long=pool.too_long,
            held_out=pool.held_out,
            available=len(pool.texts),
            splits={split: part(split, pool) for split in splits},
        )
        for pool in pools
    ]
    return MixRecord(
        digest=_digest(recipe, whole),
        recipe=recipe,
        rules=RULES,
        seed=seed,
        max_length=data.max_length if tokenizer else None,
        tokenizer=tokenizer,
        prompt=prompt,
        sources=sorted(parts, key=lambda source: (-source.share, source.name)),
        splits=whole,
        versions=versions("tokenizers", "transformers") if tokenizer else versions(),
    )


def _share(pool: Pool, pools: Sequence[Pool], data: Data) -> float:
    """Return a source's share: the study's, or its part of all available records; 0 for the validation file."""
    if pool.source is data.validation:
        return 0.0
    if pool.share is not None:
        return pool.share
    whole = sum(len(s.texts) for s in pools if s.source is not data.validation)
    return round(len(pool.texts) / whole, 4) if whole else 0.0
